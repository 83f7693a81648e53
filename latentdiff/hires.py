"""Generate at the model's size, enlarge the image, and add detail with image to image (high-resolution fix)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from latentdiff.errors import InputError, check_integer, did_you_mean
from latentdiff.images.upscaling import load_upscaler, upscale
from latentdiff.models.esrgan import RRDBNet
from latentdiff.pipeline import LatentDiffusionPipeline, PipelineOutput

PIXEL, LATENT = "lanczos", "latent"
FIRST_PASS_ONLY = ("height", "width", "latents", "edit", "generator", "source_prompt")  # arguments of the call


@dataclass(frozen=True)
class Hires:
    """Options of the second pass. scale: factor of both sides. steps: those of the first pass if None.

    upscaler: `lanczos`, `latent` (bicubic interpolation of latents) or an ESRGAN file. Raises InputError.
    """

    scale: float = 2.0
    strength: float = 0.3
    steps: int | None = None
    upscaler: str | Path = PIXEL
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if not 1 < self.scale <= 8:
            raise InputError(f"hires={self.scale:g} must be greater than 1 and at most 8; try 2")
        if not 0 <= self.strength <= 1:
            raise InputError(f"hires_strength={self.strength:g} must be from 0 to 1; try 0.3")
        if self.steps is not None:
            check_integer(self.steps, "hires_steps", 1)

    @property
    def latent(self) -> bool:
        """Whether latents are enlarged instead of pixels."""
        return self.upscaler == LATENT

    def load_upscaler(self, device: torch.device) -> RRDBNet | None:
        """Load the ESRGAN network, if the upscaler is one. Raises InputError and CheckpointError."""
        if self.upscaler in (PIXEL, LATENT):
            return None
        if not (file := Path(self.upscaler)).is_file():
            near = did_you_mean(str(self.upscaler), (PIXEL, LATENT))
            raise InputError(f"upscaler={str(file)!r} is neither a file nor a known method; {near}")
        return load_upscaler(file, device, self.allow_pickle)

    def enlarged_size(self, size: Sequence[int], unit: int) -> tuple[int, int]:
        """Both sides times the scale, rounded to multiples of `unit`."""
        first, second = (max(round(side * self.scale / unit), 1) * unit for side in size)
        return first, second

    def enlarge(self, images: Any, unit: int, network: RRDBNet | None) -> Any:
        """Enlarge images to the size of the second pass: latents [B, C, h, w] with `latent`, else a list of PIL images.

        unit: pixels per latent along each side.
        """
        if self.latent:
            return interpolate(images, self.enlarged_size(images.shape[-2:], 1), mode="bicubic")
        return [upscale(image, self.enlarged_size(image.size, unit), network) for image in images]

    def second_pass(self, arguments: Mapping[str, Any], enlarged: Any) -> dict[str, Any]:
        """The arguments of the second call, from those of the first."""
        second = {name: value for name, value in arguments.items() if name not in FIRST_PASS_ONLY}
        second |= {"image": enlarged, "strength": self.strength}
        return second if self.steps is None else second | {"num_inference_steps": self.steps}


def check_hires(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for arguments of the first call that cannot be combined with a second pass."""
    if arguments.get("mask_image") is not None:
        raise InputError(
            "hires= cannot be combined with a mask; use only_masked= to repaint an area at the model's size"
        )


def generate_hires(pipe: LatentDiffusionPipeline, hires: Hires, **arguments: Any) -> PipelineOutput:
    """Call the pipeline for both passes. arguments: of its call, without a mask. Raises InputError, CheckpointError."""
    check_hires(arguments)
    network = hires.load_upscaler(pipe.device)
    wanted = arguments.pop("output_type", "pil")
    first = pipe(**arguments, output_type="latent" if hires.latent else "pil")
    if first.stopped:
        raise InputError("the callback stopped the first pass of hires=; omit hires= to keep its images")
    enlarged = hires.enlarge(first.images, pipe.vae.config.downscale, network)
    times = arguments.pop("num_images_per_prompt", 1)
    for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
        if isinstance(texts := arguments.get(name), list | tuple):
            arguments[name] = [text for text in texts for _ in range(times)]
    if isinstance(arguments["prompt"], str):
        arguments["prompt"] = [arguments["prompt"]] * len(enlarged)
    second = hires.second_pass(arguments, enlarged) | {"output_type": wanted, "seed": first.seeds or None}
    if first.variation_seeds:
        second["variation_seed"] = first.variation_seeds
    return pipe(**second)
