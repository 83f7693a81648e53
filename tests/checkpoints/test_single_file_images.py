"""Images from single files of every family, against diffusers' pipelines from the same file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from latentdiff import LatentDiffusionPipeline
from latentdiff.images.edit import EditOptions
from tests.checkpoints.small_families import UNETS

CLASSES = {
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd1-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "xl": "StableDiffusionXLPipeline",
    "xl-v": "StableDiffusionXLPipeline",
    "xl-refiner": "StableDiffusionXLImg2ImgPipeline",
}
# diffusers 0.42 leaves the first encoder of SDXL without weights, whose names transformers 5 changed.
ENCODERS = {
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
SIDE = 64
PROMPT, NEGATIVE = "a photo of a cat, café!", "blurry"


def picture() -> Image.Image:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = np.stack([np.sin(5 * x + 3 * y), np.cos(4 * y), np.sin(7 * x)], axis=-1) * 100 + 128
    return Image.fromarray(waves.astype(np.uint8))


def inputs_of(family: str) -> dict[str, Any]:
    """The latents or images that a family starts from."""
    latents = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(5))
    if family == "xl-refiner":
        return {"image": latents, "strength": 0.6}
    if family == "sd1-pix2pix":
        return {"image": picture()}
    size = {"height": SIDE, "width": SIDE}
    if family == "sd1-inpainting":
        mask = Image.new("L", (SIDE, SIDE))
        mask.paste(255, (16, 16, 48, 40))
        return {"image": picture(), "mask_image": mask, "strength": 1.0, **size}
    return {"latents": latents, **size}


def of_diffusers(family: str, file: Path, settings: dict[str, Any]) -> np.ndarray:
    kind = getattr(diffusers, CLASSES.get(family, "StableDiffusionPipeline"))
    folder = file.with_suffix("")
    own = {name: made.from_pretrained(folder / name) for name, made in ENCODERS.items() if family in ("xl", "xl-v")}
    theirs = kind.from_single_file(file, config=str(folder), local_files_only=True, **own)
    theirs.scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    theirs.set_progress_bar_config(disable=True)
    encode = theirs.vae.encode

    class Means:
        def __init__(self, latents: torch.Tensor) -> None:
            self.latents = latents

    theirs.vae.encode = lambda pixels: Means(encode(pixels).latent_dist.mean)
    made = theirs(PROMPT, generator=torch.Generator().manual_seed(5), output_type="np", **settings)
    return np.asarray(made.images[0])


@pytest.mark.parametrize("family", UNETS)
def test_an_image_equals_diffusers(family: str, files: Callable[[str], Path]) -> None:
    file = files(family)
    settings: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 4.0, "negative_prompt": NEGATIVE}
    settings |= inputs_of(family)
    ours = LatentDiffusionPipeline.from_pretrained(file, device="cpu", dtype="float32", optimize="off")
    edit = EditOptions(paste_back=False) if "mask_image" in settings and family != "xl-refiner" else None
    found = ours(PROMPT, seed=5, sampler="ddim", output_type="np", edit=edit, **settings).images[0]
    expected = of_diffusers(family, file, settings)
    assert expected.std() > 0.01 and np.abs(found - expected).max() * 255 <= 1
