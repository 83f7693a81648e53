"""From a prompt to a picture: encode the words, walk the latents from noise, decode to pixels."""

import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from latentdiff.checkpoints.components import Components, fill, read_pipeline, write_pipeline
from latentdiff.checkpoints.hub import locate
from latentdiff.checkpoints.lora import merge_lora
from latentdiff.checkpoints.textual_inversion import load_learned
from latentdiff.errors import CheckpointError, InputError, NonFiniteError, did_you_mean
from latentdiff.files import partial_path
from latentdiff.guidance import guide
from latentdiff.inputs import for_each_image, negatives_for, noise_given, seeds_for
from latentdiff.models.tiled_decode import decode_parts
from latentdiff.models.unet import AddedCond
from latentdiff.runtime import pick_dtype, send
from latentdiff.runtime.approximate import for_one_run
from latentdiff.runtime.offload import offload_weights
from latentdiff.runtime.optimize import restore
from latentdiff.runtime.options import RuntimeOptions, choose_options
from latentdiff.samplers import Denoiser, plan, sample
from latentdiff.text.conditioning import TextEmbedding

OutputType = Literal["pil", "np", "pt", "latent"]
Callback = Callable[[int, int, Tensor], None]
KEPT_TEXTS = 4


@dataclass(frozen=True)
class PipelineOutput:
    """`images`: a list of PIL images, float32 [B, H, W, 3] in [0, 1] for "np", [B, 3, H, W] for "pt", or latents.

    `seeds`: what each image was drawn from; empty when latents were given.
    """

    images: Any
    seeds: list[int]


class LatentDiffusionPipeline:
    """A text-to-image model that is ready to call. Threads may call one; loading and saving wants it alone."""

    def __init__(self, parts: Components, device: torch.device, dtype: torch.dtype, folder: Path | None = None) -> None:
        needs, gives = parts.unet.config.in_channels, parts.unet.config.out_channels
        if needs != gives:
            raise CheckpointError(f"the U-Net reads {needs} channels and predicts {gives}; give a text-to-image model")
        self.unet = parts.unet.to(device, dtype)
        self.vae = parts.vae.to(device, torch.float32 if parts.vae.config.force_upcast else dtype)
        self.text = parts.text.to(device, dtype)
        self.schedule = parts.schedule
        self.zero_empty_prompt = parts.zero_empty_prompt
        self.generation = parts.generation
        self.device, self.dtype, self.folder = device, dtype, folder
        self.options = RuntimeOptions()
        self._texts: dict[Any, TextEmbedding] = {}

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        optimize: str = "auto",
        approximate: Sequence[str] = (),
        low_memory: bool = False,
    ) -> "LatentDiffusionPipeline":
        """Open a diffusers folder, a hub id, or without an argument the bundled model.

        device: auto, cpu, cuda, cuda:1, mps. dtype: auto, float32, bfloat16, float16. optimize: auto runs what computes
        the same faster on this machine, off the plain modules, to look into, to change or for gradients; compile what
        torch.compile makes of them, in minutes at the first call for each size, from a cache on the disk after that.
        approximate: names of what makes nearly the same pictures sooner, see `runtime.approximate`. low_memory: weights
        stay in their files and are read there at each call, a block at a time; nothing can change or save them.
        Raises CheckpointError or InputError. A local path opens no connection.
        """
        options = choose_options(optimize, approximate, low_memory)
        chosen_device = options.device(device)
        chosen_dtype = pick_dtype(dtype, chosen_device)
        folder = locate(path_or_id)
        options.await_weights(chosen_device, chosen_dtype)
        give = partial(offload_weights, fast=optimize == "auto") if low_memory else fill
        pipe = cls(read_pipeline(folder, chosen_dtype, give), chosen_device, chosen_dtype, folder)
        pipe.options = options
        options.make_ready(pipe.unet, pipe.vae)
        return pipe

    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Merge a LoRA file or folder into the weights, times `scale`. Raises CheckpointError when nothing matches."""
        with self._plain() as parts:
            merge_lora(parts, Path(path), scale)

    def load_textual_inversion(self, path: str | Path) -> list[str]:
        """Add the words learnt in a file or folder, for use in prompts; returns them. Raises CheckpointError."""
        with self._plain() as parts:
            return load_learned(parts, Path(path))

    @contextmanager
    def _plain(self) -> Iterator[Components]:
        """The parts with their weights as files hold them; whoever changes them is seen by the next call."""
        if self.options.low_memory:
            raise InputError(f"low_memory=True leaves the weights in {self.folder}; open it without, to change or save")
        restore(self.unet)
        restore(self.vae)
        self._texts.clear()
        try:
            yield Components(self.unet, self.vae, self.text, self.schedule, self.zero_empty_prompt, self.generation)
        finally:
            self.options.make_ready(self.unet, self.vae)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `diffusers.StableDiffusionPipeline.from_pretrained` opens; it must not exist yet."""
        folder = Path(folder)
        if folder.exists():
            raise InputError(f"{folder} exists; name a new folder, or remove it first")
        partial = partial_path(folder)
        try:
            with self._plain() as parts:
                write_pipeline(parts, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @property
    def default_size(self) -> int:
        """Pixels a side that the model was trained for."""
        return self.unet.config.sample_size * self.vae.config.downscale

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        callback: Callback | None = None,
        output_type: OutputType = "pil",
    ) -> PipelineOutput:
        """Make `num_images_per_prompt` pictures of each prompt.

        num_inference_steps, guidance_scale, sampler: the model's own (`self.generation`) when None.
        guidance_interval: guide only at timesteps between these parts of all, 0 clean and 1 noise.
        seed: image k is drawn from seed + k, or from seed[k], by a generator of its own; random when None.
        latents: [B, C, H/f, W/f] noise to start from instead. callback(step, steps, latents) is told of each step.
        Raises InputError for what cannot be asked, NonFiniteError when a number overflows.
        """
        prompts = for_each_image(prompt, "prompt", num_images_per_prompt)
        negatives = negatives_for(negative_prompt, prompts, num_images_per_prompt)
        height, width = self._size(height, "height"), self._size(width, "width")
        usual = self.generation
        settings = usual.asked(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, sampler=sampler)
        run = plan(self.schedule, settings.sampler, settings.num_inference_steps, eta)
        guidance = settings.guidance_scale
        if not math.isfinite(guidance):
            raise InputError(f"guidance_scale={guidance} must be a finite number; try {usual.guidance_scale:g}")
        low, high = guidance_interval
        if not 0 <= low <= high <= 1:
            raise InputError(f"guidance_interval={low}, {high} must rise within 0 and 1; try 0.2, 0.8")
        if output_type not in (known := ("pil", "np", "pt", "latent")):
            raise InputError(f"output_type={output_type!r} is unknown; {did_you_mean(output_type, known)}")
        seeds = [] if latents is not None else seeds_for(seed, len(prompts))
        shape = (self.unet.config.out_channels, height // self.vae.config.downscale, width // self.vae.config.downscale)
        generators = [torch.Generator().manual_seed(s) for s in seeds or seeds_for(seed, len(prompts))]

        def noise() -> Tensor:
            """Each image's own draw, made on the CPU so that it is the same on every device."""
            return send(torch.stack([torch.randn(shape, generator=g) for g in generators]), self.device)

        start = noise() if latents is None else noise_given(latents, (len(prompts), *shape)).to(self.device)
        denoiser = self._denoiser(prompts, negatives, height, width, guided=guidance != 1)
        if guidance != 1:
            top = self.schedule.config.num_train_timesteps
            denoiser = guide(denoiser, guidance, low * top, high * top)
        watch = _FiniteWatch(callback)
        done = sample(denoiser, start, run, noise, watch)
        watch.check()
        if output_type == "latent":
            return PipelineOutput(done, seeds)
        pixels = self._decode(done, _bytes if output_type == "pil" else _unit)
        return PipelineOutput(_to_output(pixels, output_type), seeds)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to float32 pixels [B, 3, H, W] in [-1, 1]. Raises NonFiniteError."""
        return self._decode(latents, lambda pixels: pixels)

    def _decode(self, latents: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, 3, H, W] of what `finish`, which may write to them, makes of pixels; only a part is float32 at a time."""
        dtype = next(self.vae.parameters()).dtype
        z, factor = (latents / self.vae.config.scaling_factor).to(dtype), self.vae.config.downscale
        made: Tensor | None = None
        for images, rows, pixels in decode_parts(self._decode_plainly, z, factor):
            if not torch.isfinite(pixels).all():
                raise NonFiniteError(f"the VAE made pixels that are not finite in {dtype}; use dtype='float32'")
            part = finish(pixels.clamp_(-1, 1))
            if made is None:
                made = part.new_empty(len(z), part.shape[1], factor * z.shape[-2], factor * z.shape[-1])
            made[images, :, rows] = part
        assert made is not None
        return made

    def _decode_plainly(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):  # of whoever calls: some decoders overflow in half precision
            return self.vae.decode(z)

    def _denoiser(
        self, prompts: list[str], negatives: list[str] | None, height: int, width: int, guided: bool
    ) -> Denoiser:
        """The U-Net with its words bound to it: for a batch of prompts, or also of both halves that guidance needs."""
        both = self._text(prompts, negatives, guided)
        texts = {len(text.hidden): text for text in (both.last(len(prompts)), both)}
        ids = torch.tensor([height, width, 0, 0, height, width], device=self.device)
        unet = for_one_run(self.unet, self.options.approximate, self.options.every)

        def denoiser(latents: Tensor, timestep: float) -> Tensor:
            text, timesteps = texts[len(latents)], torch.full((1,), timestep, device=self.device)
            added = None if text.pooled is None else AddedCond(text.pooled, ids.expand(len(latents), -1))
            return unet(latents.to(self.dtype), timesteps, text.hidden, added).float()

        return denoiser

    def _text(self, prompts: list[str], negatives: list[str] | None, guided: bool) -> TextEmbedding:
        """What the U-Net reads for these words, the unconditional half first; that of the last few calls is kept."""
        for prompt in {*prompts, *(negatives or [])}:
            if lost := self.text.lost_words(prompt):
                warnings.warn(f"the prompt is over the model's token limit; this part is lost: {lost!r}", stacklevel=5)
        key = (*prompts, None, *(negatives or []), guided)
        text = self._texts.pop(key, None)
        if text is None:
            text = self.text.encode(prompts)
            if guided:
                text = self._unconditional(negatives, text).join(text)
        for oldest in list(self._texts)[: 1 - KEPT_TEXTS]:
            self._texts.pop(oldest, None)
        self._texts[key] = text
        return text

    def _unconditional(self, negatives: list[str] | None, text: TextEmbedding) -> TextEmbedding:
        if negatives is None and self.zero_empty_prompt:
            pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
            return TextEmbedding(torch.zeros_like(text.hidden), pooled)
        return self.text.encode(negatives or [""] * len(text.hidden))

    def _size(self, value: int | None, name: str) -> int:
        factor = self.vae.config.downscale
        if value is None:
            return self.default_size
        if value < factor or value % factor:
            low = max(factor, value // factor * factor)
            raise InputError(f"{name}={value} must be a multiple of {factor}; try {low} or {low + factor}")
        return value


class _FiniteWatch:
    """Notes after each step whether all latents are finite, without waiting for the device; asks once at the end."""

    def __init__(self, callback: Callback | None) -> None:
        self.callback = callback
        self.flags: list[Tensor] = []

    def __call__(self, step: int, steps: int, latents: Tensor) -> None:
        self.flags.append(torch.isfinite(latents).all())
        if self.callback:
            self.callback(step, steps, latents)

    def check(self) -> None:
        finite = torch.stack(self.flags).tolist()
        if not all(finite):
            step = finite.index(False) + 1
            raise NonFiniteError(
                f"the latents are not finite from step {step} of {len(finite)} on; use dtype='float32' or less guidance"
            )


def _unit(pixels: Tensor) -> Tensor:
    return pixels.div_(2).add_(0.5).clamp_(0, 1)


def _bytes(pixels: Tensor) -> Tensor:
    return _unit(pixels).mul_(255).round_().to(torch.uint8)


def _to_output(pixels: Tensor, output_type: OutputType) -> Any:
    if output_type == "pt":
        return pixels
    array = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else [Image.fromarray(image) for image in array]
