"""Training the latent U-Net, new or further: VAE and text encoder frozen, some captions dropped for guidance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from latentdiff.checkpoint import (
    Components,
    locate,
    read_pipeline,
    read_text,
    read_vae,
    read_weights,
    write_pipeline,
)
from latentdiff.config.train import DenoiserConfig, FineTuneConfig, UNetTrainConfig
from latentdiff.data.folder import read_parts
from latentdiff.data.latents import LatentImages, encode_rows
from latentdiff.data.layouts import Row
from latentdiff.errors import InputError
from latentdiff.lora import add_lora, save_lora
from latentdiff.models.text import TextEmbedding
from latentdiff.models.unet import AddedCond, UNet2DConditionModel
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.runtime import attention_for_training
from latentdiff.schedule import Schedule
from latentdiff.training.grid import to_grid

HELD_OUT = 128
GRID_COLUMNS = 8


class DenoiserModule(nn.Module):
    """The loss of one batch of latents (Rombach et al. 2022, eq. 2)."""

    def __init__(self, parts: Components, config: DenoiserConfig) -> None:
        super().__init__()
        self.unet = parts.unet
        self.text = parts.text
        self.schedule = parts.schedule
        self.scale = parts.vae.config.scaling_factor
        self.downscale = parts.vae.config.downscale
        self.config = config

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch: `mean`, `std` [B, C, h, w] of the VAE, `caption` B strings."""
        mean = batch["mean"]
        latents = self.scale * (mean + batch["std"] * torch.randn_like(mean))
        total = self.schedule.config.num_train_timesteps
        timesteps = draw_timesteps(len(mean), total, self.config.timestep_power).to(mean.device)
        dropped = torch.rand(len(mean)) < self.config.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        return {"loss": self.loss(latents, torch.randn_like(latents), timesteps, captions).mean()}

    def loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        """Squared error of the prediction, weighted, for each picture: [B]."""
        noisy = self.schedule.add_noise(x0, noise, timesteps).contiguous(memory_format=torch.channels_last)
        text = self.text.encode(captions)
        with attention_for_training(noisy):
            output = self.unet(noisy, timesteps, text.hidden, self._added(text, x0)).float()
        error = (output - self.schedule.training_target(x0, noise, timesteps)).square().flatten(1).mean(1)
        if self.config.min_snr_gamma is None:
            return error
        return error * self.schedule.min_snr_weight(timesteps, self.config.min_snr_gamma)

    def _added(self, text: TextEmbedding, x0: Tensor) -> AddedCond | None:
        """SDXL's sizes: a picture is as large as it is trained, and cropped no further."""
        if text.pooled is None:
            return None
        height, width = (side * self.downscale for side in x0.shape[-2:])
        ids = torch.tensor([height, width, 0, 0, height, width], device=x0.device)
        return AddedCond(text.pooled, ids.expand(len(x0), -1))


def draw_timesteps(count: int, total: int, power: float) -> Tensor:
    """Whole timesteps [count] below `total`, one from each of `count` equally likely parts (Kingma et al. 2021, I.1).

    The density grows like t ** (power - 1).
    """
    quantiles = (torch.arange(count) + torch.rand(count)) / count
    return (quantiles ** (1 / power) * total).long().clamp_(max=total - 1)


class DenoiserTask:
    """Train on latents of pictures; measure on held-out ones, and draw some prompts.

    `write(parts, folder)` saves what the run is about: the whole pipeline, or a LoRA alone.
    """

    def __init__(
        self, config: DenoiserConfig, parts: Components, write: Callable[[Components, Path], None] = write_pipeline
    ) -> None:
        if config.data.flip:
            raise InputError(f"data.flip={config.data.flip} is not used where pictures are encoded once; leave it at 0")
        self.config, self.parts, self.write = config, parts, write
        self.module = DenoiserModule(parts, config)
        rows, held_out = read_parts(config.data)
        self.data = LatentImages(rows, self._encode(rows, "train"))
        self.held_out_rows = held_out[:: max(1, len(held_out) // HELD_OUT)][:HELD_OUT]
        self.held_out = self._encode(self.held_out_rows, "held_out") if held_out else None

    def _encode(self, rows: list[Row], name: str) -> Tensor:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cache = self.config.run.output / f"latents-{name}.safetensors"
        return encode_rows(self.parts.vae.to(device), rows, self.config.data.resolution, cache)

    def evaluate(self) -> tuple[dict[str, float], Image.Image | None]:
        """Held-out loss at fixed timesteps and noise, and pictures of the config's prompts from seed 0 on."""
        config = self.config
        figures = {} if self.held_out is None else {"held_out_loss": self._held_out_loss(self.held_out)}
        if not config.sample_prompts:
            return figures, None
        pipeline = LatentDiffusionPipeline(self.parts, next(self.module.parameters()).device, torch.float32)
        size = config.data.resolution
        pixels = pipeline(
            list(config.sample_prompts), num_inference_steps=config.sample_steps,
            guidance_scale=config.guidance_scale, height=size, width=size, seed=0, output_type="pt",
        ).images  # fmt: skip
        return figures, to_grid(pixels * 2 - 1, GRID_COLUMNS)

    def _held_out_loss(self, moments: Tensor) -> float:
        device = next(self.module.parameters()).device
        x0 = self.module.scale * moments.float().chunk(2, dim=1)[0]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        timesteps = (torch.arange(len(x0)) * self.module.schedule.config.num_train_timesteps) // len(x0)
        captions = [row.captions[0] for row in self.held_out_rows]
        return self.module.loss(x0.to(device), noise.to(device), timesteps.to(device), captions).mean().item()

    def save(self, folder: Path) -> None:
        self.write(self.parts, folder)


def scratch_task(config: UNetTrainConfig) -> DenoiserTask:
    """A new U-Net, or one from `init`, beside the VAE and text encoder that the config names."""
    text = read_text(config.text_encoder, {"text_encoder": ["transformers", "CLIPTextModel"]})
    unet = UNet2DConditionModel(config.model)
    if config.init is not None:
        unet.load_state_dict({key: value.float() for key, value in read_weights(config.init).items()})
    return DenoiserTask(config, Components(unet, read_vae(config.vae), text, Schedule(config.schedule)))


def finetune_task(config: FineTuneConfig) -> DenoiserTask:
    """The base model with all of its U-Net, or low-rank pairs beside it, set to be trained."""
    parts = read_pipeline(locate(config.base), torch.float32)
    if config.method == "full":
        parts.unet.requires_grad_(True)
        return DenoiserTask(config, parts)
    add_lora(parts.unet, config.rank, dora=config.method == "dora")
    return DenoiserTask(config, parts, save_lora)
