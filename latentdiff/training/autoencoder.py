"""VAE training: reconstruction, gradient and KL losses, and optionally a patch discriminator."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from latentdiff.checkpoints.folder import load_weights, read_vae_config, write_model
from latentdiff.config.train import VAETrainConfig
from latentdiff.data.dataset import CaptionedImages, load_pixels, read_parts
from latentdiff.device_transfer import send
from latentdiff.models.vae import AutoencoderKL
from latentdiff.training.losses import PatchDiscriminator, discriminator_loss, gradient_loss
from latentdiff.training.processes import process_state
from latentdiff.training.rng import Draws
from latentdiff.training.task import Share

HELD_OUT = 64
SHOWN = 16


class AutoencoderModule(nn.Module):
    """Computes the losses of one batch for the autoencoder and, if there is one, for its discriminator."""

    def __init__(self, config: VAETrainConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = AutoencoderKL(config.model)
        if config.init is not None:
            load_weights(self.vae, config.init)
        for part in (self.vae.encoder, self.vae.quant_conv):
            if part is not None:
                part.requires_grad_(config.train_encoder)
        self.critic = PatchDiscriminator() if config.adversarial_weight else None

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch: `pixels` [B, 3, H, W] in [-1, 1]. LDM's objective (Rombach et al. 2022, eq. 25)."""
        pixels = batch["pixels"]
        posterior = self.vae.encode(pixels)
        draws, mean = Draws(self.config.run.seed, batch["draw"]), posterior.mean
        latents = mean + (0.5 * posterior.logvar).exp() * draws.normal(mean)
        if self.config.latent_noise:
            level = (
                self.config.latent_noise
                * send(draws.uniform(), mean.device).to(mean.dtype)
                * mean.detach().flatten(1).std(1)
            )
            latents = latents + level[:, None, None, None] * draws.normal(mean)
        reconstruction = self.vae.decode(latents).float()
        losses = {
            "l1": F.l1_loss(reconstruction, pixels),
            "gradient": gradient_loss(reconstruction, pixels, self.config.gradient_exponent),
            "kl": posterior.kl().float().mean() / posterior.mean[0].numel(),
        }
        config = self.config
        loss = losses["l1"] + config.gradient_weight * losses["gradient"] + config.kl_weight * losses["kl"]
        if self.critic is not None and self._step(batch["draw"]) >= config.adversarial_start:
            losses |= self._adversarial(pixels, reconstruction)
            loss = loss + config.adversarial_weight * losses["fool"] + losses["critic"]
        return {"loss": loss, **losses}

    def _step(self, draws: Tensor) -> int:
        """The optimiser step that a batch belongs to, computed from its draws."""
        config, processes = self.config, process_state().num_processes
        return int(draws[0]) // (config.data.batch_size * config.run.gradient_accumulation_steps * processes)

    def _adversarial(self, pixels: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Both losses in one graph; each detaches the weights of the other network."""
        assert self.critic is not None
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        fool = -torch.func.functional_call(self.critic, frozen, (reconstruction,)).float().mean()
        scores = self.critic(torch.cat([pixels, reconstruction.detach()])).float().chunk(2)
        return {"fool": fool, "critic": discriminator_loss(*scores)}


class AutoencoderTask:
    """Train on one folder; evaluate on another."""

    def __init__(self, config: VAETrainConfig) -> None:
        self.config = config
        self.module = AutoencoderModule(config)
        data = config.data.model_copy(update={"prefix": "a picture"})  # captions are not used, but rows must have one
        rows, held_out = read_parts(data, measure=True)
        self.collate = default_collate
        self.data = CaptionedImages(rows, data)
        step = max(1, len(held_out) // HELD_OUT)
        shown = held_out[::step][:HELD_OUT]
        self.held_out = torch.stack([load_pixels(row, config.data.resolution, config.data.background) for row in shown])

    def evaluate(self, rank: int, world: int) -> Share:
        """L1, PSNR in dB (peak 255, pixels rounded) and standard deviation of the latents on held-out pictures."""
        vae = self.module.vae
        device = next(vae.parameters()).device
        share = Share()
        for index in range(rank, len(self.held_out), world):
            real = self.held_out[index]
            latents = vae.encode(real[None].to(device)).mean
            made = vae.decode(latents)[0].float().clamp(-1, 1).cpu()
            mse = (to_bytes(made) - to_bytes(real)).square().mean().clamp_min(1e-10)
            share.add("held_out_loss", F.l1_loss(made, real).item())
            share.add("psnr", 10 * math.log10(255**2 / mse.item()))
            share.add("latent_std", latents.float().std().item())
            if index < SHOWN:
                share.pictures |= {2 * index: real, 2 * index + 1: made}
        return share

    def save(self, folder: Path) -> None:
        """Write a diffusers VAE folder; after encoder training scaling_factor is 1 / std of the latents."""
        vae = self.module.vae
        write_model(vae, vae.config.model_copy(update={"scaling_factor": self._scaling_factor()}).write(), folder)

    @torch.no_grad()
    def _scaling_factor(self) -> float:
        vae, init = self.module.vae, self.config.init
        if not self.config.train_encoder and init is not None:
            return read_vae_config(init).scaling_factor
        device = next(vae.parameters()).device
        latents = torch.cat([vae.encode(pixels.to(device)).mean for pixels in self.held_out.split(16)])
        return round(1 / latents.std().item(), 5)


def to_bytes(pixels: Tensor) -> Tensor:
    """[-1, 1] to integers 0..255, as float."""
    return ((pixels + 1) * 127.5).round()
