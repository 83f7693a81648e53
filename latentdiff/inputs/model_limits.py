"""What the arguments of a pipeline call depend on."""

from dataclasses import dataclass
from typing import Literal

from latentdiff.config.model import GenerationConfig
from latentdiff.sampling.schedule import Schedule

Task = Literal["generate", "inpaint", "edit"]
"""What a network reads beside latents: nothing, a mask and the masked image, or the image (InstructPix2Pix)."""


@dataclass(frozen=True)
class ModelLimits:
    """The schedule and usual settings of a model, its latents' channels, and sizes in pixels.

    downscale: pixels per latent along each side; sides are multiples of it. default_size: pixels a side. text_encoders:
    how many. max_clip_skip: of their layers. size_numbers: that the U-Net reads beside the text, for SDXL.
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
