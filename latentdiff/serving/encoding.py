"""Images as files in memory, with the recipe inside; previews of unfinished ones."""

import base64
import io
from typing import Literal

from PIL import Image, PngImagePlugin
from torch import Tensor

import latentdiff
from latentdiff.recipe import CHUNK, Recipe
from latentdiff.serving.job import Job, JobImage
from latentdiff.serving.models import ModelStore

Format = Literal["png", "jpeg", "webp"]
QUALITY = 90


def recipe_of(job: Job, image: JobImage, models: ModelStore) -> Recipe:
    """What an image depends on."""
    request, facts = job.request, models.facts[job.request.model]
    loras = tuple((str(models.loras[name].path), *weights) for name, weights in request.loras)
    return Recipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=image.seed,
        sampler=request.sampler,
        eta=request.settings.get("eta", 0.0),
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_interval=request.settings.get("guidance_interval", (0.0, 1.0)),
        height=request.height,
        width=request.width,
        dtype=facts.dtype,
        model=models.specs[request.model].path,
        loras=loras,
        model_hash=models.hash_with(request.model, [name for name, _ in request.loras]),
        version=latentdiff.__version__,
    )


def infotext(job: Job, image: JobImage, models: ModelStore) -> str:
    """The settings as A1111 writes them, which many programs read."""
    request = job.request
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    values = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": image.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": models.facts[request.model].hash[:10],
        "Model": request.model,
        "Version": f"latentdiff {latentdiff.__version__}",
    }
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in values.items())])


def encode(job: Job, image: JobImage, models: ModelStore, form: Format = "png", quality: int = QUALITY) -> bytes:
    """The bytes of an image file; a PNG carries the recipe and A1111's line."""
    buffer = io.BytesIO()
    if form == "png":
        chunks = PngImagePlugin.PngInfo()
        if not image.stopped:
            chunks.add_itxt(CHUNK, recipe_of(job, image, models).model_dump_json())
        chunks.add_text("parameters", infotext(job, image, models))
        image.image.save(buffer, "PNG", pnginfo=chunks)
    else:
        image.image.save(buffer, form.upper(), quality=quality)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    """Bytes as text for JSON."""
    return base64.b64encode(data).decode("ascii")


def preview(job: Job, x0: Tensor, models: ModelStore, form: Format = "png", full_size: bool = False) -> bytes:
    """An unfinished image as a file, of the latents' size or enlarged to the image's."""
    image = models.facts[job.request.model].preview(x0)
    if full_size:
        image = image.resize((job.request.width, job.request.height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, form.upper())
    return buffer.getvalue()
