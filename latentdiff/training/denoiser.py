"""Denoiser training in a frozen VAE's latent space, with caption dropout for classifier-free guidance."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.checkpoints.components import Components, write_pipeline
from latentdiff.checkpoints.model_source import NetworkFiles
from latentdiff.config.model import side_multiple
from latentdiff.config.train import DenoiserConfig
from latentdiff.data.dataset import load_pixels, read_parts
from latentdiff.data.latent_cache import Encoded, LatentImages, encode_rows
from latentdiff.data.layouts import DataRow
from latentdiff.device_transfer import send
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.runtime.training_attention import attention_for_training
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.training.frozen import on_device, release, weights_of
from latentdiff.training.noise import NoisyBatch
from latentdiff.training.processes import process_state
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.samples import Samples
from latentdiff.training.task import Share, reason
from latentdiff.training.text_cache import TextCache

HELD_OUT = 128
SHOWN = 6


class DenoiserModule(nn.Module):
    """Computes the loss of one batch of latents (Rombach et al. 2022, eq. 2)."""

    def __init__(self, parts: Components, config: DenoiserConfig, text: TextCache | TextConditioner) -> None:
        super().__init__()
        self.unet = parts.denoiser  # the name is in checkpoints of runs
        self.text = text
        self.schedule = parts.schedule
        self.scale = parts.vae.config.scaling_factor
        self.downscale = parts.vae.config.downscale
        self.config = config

    @cached_property
    def compiled(self) -> Callable[..., Tensor]:
        """The U-Net, compiled at its first call for each size; not a submodule, so that names of weights stay."""
        return torch.compile(self.unet)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch: `mean`, `std` of the VAE, `posterior_noise`, `noise` [B, C, h, w], `caption` B strings, `timesteps`
        on the CPU and `weight` [B].
        """
        x0 = self.scale * (batch["mean"] + batch["std"] * batch["posterior_noise"])
        loss = self.loss(x0, batch["noise"], batch["timesteps"], batch["caption"])
        return {"loss": (loss * batch["weight"]).mean()}

    def loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
        """Weighted squared error of the prediction for each picture: [B]. timesteps: on the CPU, like the schedule."""
        noisy = self.schedule.add_noise(x0, noise, timesteps).contiguous(memory_format=torch.channels_last)
        height, width = (side * self.downscale for side in x0.shape[-2:])  # for SDXL: the picture's size, no crop
        text = self.text.embed(captions).with_time_ids(height, width, 0, 0, height, width)
        unet = self.compiled if self.training and self.config.run.compile else self.unet
        with attention_for_training(noisy):
            output = unet(noisy, send(timesteps, x0.device), text.to(x0.device)).float()
        target = self.schedule.training_target(x0, noise, timesteps)
        error = elementwise_loss(output, target, self.config.huber_delta).flatten(1).mean(1)
        if self.config.min_snr_gamma is None:
            return error
        return error * send(self.schedule.min_snr_weight(timesteps, self.config.min_snr_gamma), x0.device)


def elementwise_loss(output: Tensor, target: Tensor, huber_delta: float | None) -> Tensor:
    """Squared error, or twice Huber's (1964): the square up to `huber_delta`, its tangent line beyond."""
    if huber_delta is None:
        return (output - target).square()
    return 2 * F.huber_loss(output, target, reduction="none", delta=huber_delta)


class DenoiserTask:
    """Train on latents of pictures, evaluate on held-out ones, and generate samples.

    write(parts, folder): saves the result, the complete pipeline or only a LoRA. more: pictures in addition to
    `config.data`. trains_text: captions are encoded at every step instead of once. load: loads the denoiser's weights;
    called when pictures and captions have been encoded.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        folder: RunFolder,
        parts: Components,
        write: Callable[[Components, Path], None] = write_pipeline,
        more: Sequence[DataRow] = (),
        trains_text: bool = False,
        load: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.folder, self.parts, self.write = config, folder, parts, write
        parts.denoiser.gradient_checkpointing = config.run.gradient_checkpointing
        rows, held_out = read_parts(config.data, measure=config.run.early_stopping is not None)
        self.metrics = None
        if config.metrics is not None:
            from latentdiff.training.picture_metrics import PictureMetrics  # transformers, which takes seconds

            self.metrics = PictureMetrics(config.metrics, config.data, held_out)
        self._save_strip(rows)
        rows = [*_as_often(rows, more), *_as_often(more, rows)]
        self.held_out_rows = held_out[:: max(1, len(held_out) // HELD_OUT)][:HELD_OUT]
        micro_batches = config.run.gradient_accumulation_steps * process_state().num_processes
        batch = config.data.batch_size * micro_batches
        self.data = LatentImages(rows, self._encode(rows, "train", batch), config.data)
        self.held_out = [encoded.cuts[0] for encoded in self._encode(self.held_out_rows, "held_out")]
        cache = None if trains_text else self._embed(rows)
        self.parked = [parts.vae, *(cache.parked if cache else [])]
        self.released = self._networks_to_release()
        for network, _ in self.released:
            release(network)
        load()
        self.module = DenoiserModule(parts, config, cache or parts.text)
        self.collate = NoisyBatch(config, parts.schedule.config.num_train_timesteps)

    def _networks_to_release(self) -> list[tuple[nn.Module, NetworkFiles]]:
        """Parked networks whose memory is freed between evaluations: only in runs on the CPU.

        Networks that are part of the result, or that were not read from files, are kept.
        """
        source = self.parts.source
        if process_state().device.type != "cpu" or source is None or self.write is write_pipeline:
            return []
        files: list[tuple[nn.Module, NetworkFiles]] = [(self.parts.vae, source.vae)]
        if self.parts.text in self.parked:
            files += zip(self.parts.text.encoders, source.text_encoders, strict=True)
        return files

    def _save_strip(self, rows: list[DataRow]) -> None:
        """Save a few pictures of the dataset for the report."""
        shown = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
        if process_state().is_main_process:
            pixels = [load_pixels(row, self.config.data.resolution, self.config.data.background) for row in shown]
            Samples.of(pixels, [row.captions[0] for row in shown]).save(self.folder.data_pictures)

    def _encode(self, rows: list[DataRow], name: str, batch: int = 1) -> list[Encoded]:
        cache = self.folder.latents(name)
        multiple = side_multiple(self.parts.denoiser.config, self.parts.vae.config)
        with process_state().main_process_first(), on_device([self.parts.vae], process_state().device):
            return encode_rows(self.parts.vae, rows, self.config.data, cache, multiple, batch)

    def _embed(self, rows: list[DataRow]) -> TextCache:
        captions = {"", *(caption for row in (*rows, *self.held_out_rows) for caption in row.captions)}
        if self.config.data.shuffle_captions or self.config.data.tag_dropout:
            captions = set()
        with process_state().main_process_first():
            return TextCache(self.parts.text, sorted(captions), self.folder.captions, process_state().device)

    def evaluate(self, rank: int, world: int) -> Share:
        """Held-out loss at fixed timesteps and noise, and samples of the config's prompts; sample k has seed k.

        The first process computes the image metrics; the others wait for it when shares are gathered.
        """
        share = Share()
        for loss in self._held_out_losses(rank, world):
            share.add("held_out_loss", loss)
        if not (self.config.sample_prompts or self.metrics):
            return share
        with weights_of(self.released), on_device(self.parked, self._device):
            self._draw_samples(share, rank, world)
            if self.metrics is not None and rank == 0:
                try:
                    for name, value in self.metrics.compute(self._draw).items():
                        share.add(name, value)
                except Exception as error:  # the other figures are valid
                    share.failure = reason(error)
        return share

    def _draw_samples(self, share: Share, rank: int, world: int) -> None:
        prompts, size = self.config.sample_prompts, self.config.data.batch_size
        mine = list(range(rank, len(prompts), world))
        for part in (mine[start : start + size] for start in range(0, len(mine), size)):
            pixels = self._draw([prompts[index] for index in part], part).cpu() * 2 - 1
            share.pictures |= dict(zip(part, pixels, strict=True))
            share.captions |= {index: prompts[index] for index in part}

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _draw(self, prompts: list[str], seeds: list[int]) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 1]."""
        config = self.config
        pipeline = LatentDiffusionPipeline(self.parts, self._device, dtype=None)
        size = config.data.resolution
        return pipeline(
            prompts, num_inference_steps=config.sample_steps, guidance_scale=config.guidance_scale,
            height=size, width=size, seed=seeds, sampler="ddim", output_type="pt", prompt_syntax="plain",
        ).images  # fmt: skip

    def _held_out_losses(self, rank: int, world: int) -> Iterator[float]:
        """The loss of every `world`th held-out picture; its timestep and noise depend only on its index."""
        device = self._device
        total = self.module.schedule.config.num_train_timesteps
        for index in range(rank, len(self.held_out), world):
            x0 = self.module.scale * self.held_out[index].float().chunk(2)[0][None]
            noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(index))
            timestep = torch.tensor([index * total // len(self.held_out)])
            caption = self.held_out_rows[index].captions[0]
            yield self.module.loss(x0.to(device), noise.to(device), timestep, [caption]).item()

    def save(self, folder: Path) -> None:
        self.write(self.parts, folder)


def _as_often(rows: Sequence[DataRow], others: Sequence[DataRow]) -> list[DataRow]:
    """The rows, repeated if `others` are more, so that both kinds occur equally often."""
    return list(islice(cycle(rows), max(len(rows), len(others) if rows else 0)))
