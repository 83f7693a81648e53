"""Images as files in memory, with the recipe inside; previews of unfinished ones."""

import base64
import io
from typing import Literal

from PIL import Image, PngImagePlugin
from torch import Tensor

import latentdiff
from latentdiff.recipe import CHUNK, Recipe
from latentdiff.serving.a1111_names import a1111_sampler, a1111_scheduler
from latentdiff.serving.errors import ServingError
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
        prompt_2=request.settings.get("prompt_2"),
        negative_prompt_2=request.settings.get("negative_prompt_2"),
        prompt_syntax=request.settings.get("prompt_syntax", "a1111"),
        clip_skip=request.settings.get("clip_skip"),
        seed=image.seed,
        sampler=request.sampler,
        spacing=request.settings.get("spacing"),
        eta=request.settings.get("eta", 0.0),
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_interval=request.settings.get("guidance_interval", (0.0, 1.0)),
        height=image.image.height,
        width=image.image.width,
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
        "Sampler": a1111_sampler(request.sampler),
        "Schedule type": a1111_scheduler(request.settings.get("spacing")),
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": image.seed,
        "Size": f"{image.image.width}x{image.image.height}",
        "Model hash": models.facts[request.model].hash[:10],
        "Model": request.model,
        "Denoising strength": request.settings.get("strength"),
        "Version": f"latentdiff {latentdiff.__version__}",
    }
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in values.items() if value is not None)])


def encode(job: Job, image: JobImage, models: ModelStore, form: Format = "png", quality: int = QUALITY) -> bytes:
    """The bytes of an image file; a PNG carries the recipe and A1111's line."""
    buffer = io.BytesIO()
    if form == "png":
        chunks = PngImagePlugin.PngInfo()
        if not image.stopped and "image" not in job.request.settings:  # a recipe of text to image makes it again
            chunks.add_itxt(CHUNK, recipe_of(job, image, models).model_dump_json())
        chunks.add_text("parameters", infotext(job, image, models))
        image.image.save(buffer, "PNG", pnginfo=chunks)
    else:
        image.image.save(buffer, form.upper(), quality=quality)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    """Bytes as text for JSON."""
    return base64.b64encode(data).decode("ascii")


def text_chunks(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG; none for other files. Raises ServingError for a damaged one."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ServingError(f"Invalid encoded image: {error}; send a PNG", "image") from error


def preview(job: Job, x0: Tensor, models: ModelStore, form: Format = "png", full_size: bool = False) -> bytes:
    """An unfinished image as a file, of the latents' size or enlarged to the image's."""
    image = models.facts[job.request.model].preview(x0)
    if full_size:
        image = image.resize(job.request.size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, form.upper())
    return buffer.getvalue()
