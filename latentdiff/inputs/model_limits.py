"""The properties of a model that the arguments of a pipeline call are checked against."""

from dataclasses import dataclass
from typing import Literal

from latentdiff.config.generation import GenerationConfig
from latentdiff.sampling.schedule import Schedule

Task = Literal["generate", "inpaint", "edit"]
"""Inputs of a U-Net besides latents: none, a mask and the masked image, or the image (InstructPix2Pix)."""


@dataclass(frozen=True)
class ModelLimits:
    """The schedule, default settings and sizes of a model.

    downscale: pixels per latent along each side; image sides are multiples of it. default_size: default side in pixels.
    text_encoders: their number. max_clip_skip: the most layers that can be skipped. size_numbers: the number of sizes
    and scores that SDXL's U-Nets read; 0 for other models.
    """

    schedule: Schedule
    generation: GenerationConfig
    latent_channels: int
    downscale: int
    default_size: int
    task: Task = "generate"
    text_encoders: int = 1
    max_clip_skip: int = 0
    size_numbers: int = 0
