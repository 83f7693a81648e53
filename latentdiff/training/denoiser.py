"""Training the latent U-Net: frozen VAE, frozen text encoder, a fixed share of captions dropped for guidance."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from latentdiff.checkpoint import Components, read_text, read_vae, read_weights, write_pipeline
from latentdiff.config.train import UNetTrainConfig
from latentdiff.data.folder import read_rows
from latentdiff.data.latents import LatentImages, encode_rows
from latentdiff.data.layouts import Row
from latentdiff.models.text import TextConditioner
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.runtime import attention_for_training
from latentdiff.schedule import Schedule
from latentdiff.training.grid import to_grid

HELD_OUT = 128
GRID_COLUMNS = 8


class DenoiserModule(nn.Module):
    """The loss of one batch of latents (Rombach et al. 2022, eq. 2). Only the U-Net is trained."""

    def __init__(
        self, unet: UNet2DConditionModel, text: TextConditioner, scale: float, config: UNetTrainConfig
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text = text
        self.scale = scale
        self.config = config
        self.schedule = Schedule(config.schedule)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch: `mean`, `std` [B, C, h, w] of the VAE, `caption` B strings."""
        mean = batch["mean"]
        latents = self.scale * (mean + batch["std"] * torch.randn_like(mean))
        timesteps = draw_timesteps(len(mean), self.config.schedule.num_train_timesteps, self.config.timestep_power)
        timesteps = timesteps.to(mean.device)
        dropped = torch.rand(len(mean)) < self.config.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        return {"loss": self.loss(latents, torch.randn_like(latents), timesteps, captions).mean()}

    def loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        """Squared error of the prediction, weighted, for each picture: [B]."""
        noisy = self.schedule.add_noise(x0, noise, timesteps).contiguous(memory_format=torch.channels_last)
        with attention_for_training(noisy):
            output = self.unet(noisy, timesteps, self.text.encode(captions).hidden).float()
        error = (output - self.schedule.training_target(x0, noise, timesteps)).square().flatten(1).mean(1)
        if self.config.min_snr_gamma is None:
            return error
        return error * self.schedule.min_snr_weight(timesteps, self.config.min_snr_gamma)


def draw_timesteps(count: int, total: int, power: float) -> Tensor:
    """Whole timesteps [count] below `total`, one from each of `count` equally likely parts (Kingma et al. 2021, I.1).

    The density grows like t ** (power - 1).
    """
    quantiles = (torch.arange(count) + torch.rand(count)) / count
    return (quantiles ** (1 / power) * total).long().clamp_(max=total - 1)


class DenoiserTask:
    """Train on one folder's latents; measure on another's, and draw some prompts."""

    def __init__(self, config: UNetTrainConfig) -> None:
        self.config = config
        self.vae = read_vae(config.vae)
        text = read_text(config.text_encoder, {"text_encoder": ["transformers", "CLIPTextModel"]})
        unet = UNet2DConditionModel(config.model)
        if config.init is not None:
            unet.load_state_dict({key: value.float() for key, value in read_weights(config.init).items()})
        self.module = DenoiserModule(unet, text, self.vae.config.scaling_factor, config)
        rows = read_rows(config.data.train, config.data.keep)
        self.data = LatentImages(rows, self._encode(rows, "train"))
        held_out = read_rows(config.data.held_out, config.data.keep)
        self.held_out_rows = held_out[:: max(1, len(held_out) // HELD_OUT)][:HELD_OUT]
        self.held_out = self._encode(self.held_out_rows, "held_out")

    def _encode(self, rows: list[Row], name: str) -> Tensor:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cache = self.config.run.output / f"latents-{name}.safetensors"
        return encode_rows(self.vae.to(device), rows, self.config.data.resolution, cache)

    def evaluate(self) -> tuple[dict[str, float], Image.Image | None]:
        """Held-out loss at fixed timesteps and noise, and pictures of the config's prompts from seed 0 on."""
        module, config = self.module, self.config
        device = next(module.parameters()).device
        generator = torch.Generator().manual_seed(0)
        x0 = module.scale * self.held_out.float().chunk(2, dim=1)[0]
        noise = torch.randn(x0.shape, generator=generator)
        total = config.schedule.num_train_timesteps
        timesteps = (torch.arange(len(x0)) * total) // len(x0)
        captions = [row.captions[0] for row in self.held_out_rows]
        loss = module.loss(x0.to(device), noise.to(device), timesteps.to(device), captions).mean().item()
        if not config.sample_prompts:
            return {"held_out_loss": loss}, None
        pipeline = LatentDiffusionPipeline(self.components(), device, torch.float32)
        pixels = pipeline(
            list(config.sample_prompts), num_inference_steps=config.sample_steps,
            guidance_scale=config.guidance_scale, seed=0, output_type="pt",
        ).images  # fmt: skip
        return {"held_out_loss": loss}, to_grid(pixels * 2 - 1, GRID_COLUMNS)

    def components(self) -> Components:
        return Components(self.module.unet, self.vae, self.module.text, self.module.schedule)

    def save(self, folder: Path) -> None:
        """The whole pipeline as a diffusers folder."""
        write_pipeline(self.components(), folder)
