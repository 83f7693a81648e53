"""A second pass at a larger size: the image is enlarged, then image to image adds the detail."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn.functional import interpolate

from latentdiff.errors import InputError
from latentdiff.pipeline import LatentDiffusionPipeline, PipelineOutput
from latentdiff.upscaling import load_upscaler, upscale

PIXEL, LATENT = "lanczos", "latent"


@dataclass(frozen=True)
class Hires:
    """scale: of both sides. strength, steps: of the second pass; steps None are those of the first.

    upscaler: `lanczos`, `latent` (bicubic, between latents) or an ESRGAN file. Raises InputError.
    """

    scale: float = 2.0
    strength: float = 0.6
    steps: int | None = None
    upscaler: str | Path = PIXEL
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if not 1 < self.scale <= 8:
            raise InputError(f"hires={self.scale:g} must be over 1 and at most 8; try 2")
        if not 0 <= self.strength <= 1:
            raise InputError(f"hires_strength={self.strength:g} must be from 0 to 1; try 0.6")


def generate_hires(pipe: LatentDiffusionPipeline, hires: Hires, **arguments: Any) -> PipelineOutput:
    """Call the pipeline twice. arguments: of its call, without a mask. Raises InputError and CheckpointError."""
    if arguments.get("mask_image") is not None:
        raise InputError("hires= does not go with a mask; use only_masked= to paint an area at the model's size")
    network = None
    if hires.upscaler not in (PIXEL, LATENT):
        network = load_upscaler(Path(hires.upscaler), pipe.device, hires.allow_pickle)
    wanted = arguments.pop("output_type", "pil")
    first = pipe(**arguments, output_type="latent" if hires.upscaler == LATENT else "pil")
    if first.stopped:
        raise InputError("the callback stopped the first pass of hires=; leave hires out to keep its images")
    factor, latent = pipe.vae.config.downscale, hires.upscaler == LATENT
    height, width = first.images.shape[-2:] if latent else (first.images[0].height, first.images[0].width)
    unit = 1 if latent else factor
    height, width = (max(round(side * hires.scale / unit), 1) * unit for side in (height, width))
    if latent:
        enlarged: Any = interpolate(first.images, (height, width), mode="bicubic")
    else:
        enlarged = [upscale(image, (width, height), network) for image in first.images]
    times = arguments.pop("num_images_per_prompt", 1)
    for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
        if isinstance(texts := arguments.get(name), list | tuple):
            arguments[name] = [text for text in texts for _ in range(times)]
    if isinstance(arguments["prompt"], str):
        arguments["prompt"] = [arguments["prompt"]] * len(enlarged)
    second = {"image": enlarged, "strength": hires.strength, "output_type": wanted, "seed": first.seeds or None}
    if first.variation_seeds:
        second["variation_seed"] = first.variation_seeds
    if hires.steps is not None:
        second["num_inference_steps"] = hires.steps
    for name in ("height", "width", "latents", "edit", "generator"):
        arguments.pop(name, None)
    return pipe(**arguments | second)
