"""Encode images with their recipe as files in memory, and previews of unfinished images."""

import base64
import hashlib
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError
from torch import Tensor

import latentdiff
from latentdiff.recipe.files import image_metadata
from latentdiff.recipe.infotext import write_infotext
from latentdiff.recipe.schema import Recipe
from latentdiff.safety import blurred
from latentdiff.serving.errors import ServingError
from latentdiff.serving.job import Job, JobImage
from latentdiff.serving.models import ModelSpec, ModelStore

Format = Literal["png", "jpeg", "webp"]
QUALITY = 90


def recipe_of(job: Job, image: JobImage, models: ModelStore) -> Recipe:
    """The recipe of an image. Files on the server are given by name, without their folders."""
    request, facts, spec = job.request, models.facts[job.request.model], models.specs[job.request.model]
    loras = tuple((models.loras[name].path.name, *weights) for name, weights in request.loras)
    return Recipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        prompt_2=request.settings.get("prompt_2"),
        negative_prompt_2=request.settings.get("negative_prompt_2"),
        prompt_syntax=request.settings.get("prompt_syntax", "a1111"),
        clip_skip=request.settings.get("clip_skip"),
        seed=image.seed,
        variation_seed=image.variation_seed,
        variation_strength=request.variation_strength,
        sampler=request.sampler,
        spacing=request.settings.get("spacing"),
        eta=request.settings.get("eta", 0.0),
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_interval=request.settings.get("guidance_interval", (0.0, 1.0)),
        height=request.size[1],
        width=request.size[0],
        tile=request.settings.get("tile"),
        seamless=request.settings.get("seamless"),
        **_editing(job),
        **_second_pass(job),
        **image.checked,
        dtype=facts.dtype,
        model=_stated_path(spec.path),
        **opening_of(spec),
        loras=loras,
        embeddings=tuple(file.name for file in dict.fromkeys(facts.words.values())),
        hashes={"model": facts.hash[:10]},
        model_hash=models.hash_with(request.model, [name for name, _ in request.loras]),
        version=latentdiff.__version__,
    )


def _stated_path(path: str | None) -> str | None:
    """The name of a local file or folder; a hub id is unchanged."""
    return Path(path).name if path is not None and Path(path).exists() else path


def opening_of(spec: ModelSpec) -> dict[str, Any]:
    """The options of opening a model that affect its images, with the field names of `Recipe`."""
    files = {name: _stated_path(spec.options.get(name)) for name in ("vae", "unet")}
    return files | {name: spec.options.get(name) for name in ("variant", "prediction_type")}


def _editing(job: Job) -> dict[str, Any]:
    """How an input image was used; only its hash is stored, not the image."""
    settings, edit = job.request.settings, job.request.settings.get("edit")
    if "image" not in settings:
        return {}
    hashes = {name: _hash(settings.get(key)) for name, key in (("image_hash", "image"), ("mask_hash", "mask_image"))}
    return hashes | {"strength": settings.get("strength")} | ({} if edit is None else asdict(edit))


def _second_pass(job: Job) -> dict[str, Any]:
    if (hires := job.request.hires) is None:
        return {}
    return {
        "hires": hires.scale,
        "hires_strength": hires.strength,
        "hires_steps": hires.steps,
        "upscaler": str(hires.upscaler),
    }


def _stated_size(job: Job, image: JobImage) -> tuple[int, int]:
    """The size in the metadata: that of the first pass if there are two, as in A1111."""
    return image.image.size if job.request.hires is None else job.request.size


def _hash(image: Image.Image | None) -> str | None:
    return None if image is None else hashlib.sha256(image.tobytes()).hexdigest()[:16]


def infotext(job: Job, image: JobImage, models: ModelStore) -> str:
    """The settings as A1111 writes them, which many programs read."""
    return write_infotext(recipe_of(job, image, models), *_stated_size(job, image))


def encode(job: Job, image: JobImage, models: ModelStore, form: Format = "png", quality: int = QUALITY) -> bytes:
    """Encode an image with its recipe; an interrupted image has none, since no recipe reproduces it."""
    kind = form.upper()
    options: dict[str, Any] = {} if form == "png" else {"quality": quality}
    if not image.stopped:
        options |= image_metadata(kind, recipe_of(job, image, models), *_stated_size(job, image))
    buffer = io.BytesIO()
    image.image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    """Bytes as text for JSON."""
    return base64.b64encode(data).decode("ascii")


def text_chunks(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG; none for other files. Raises ServingError for a damaged PNG."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ServingError(f"Invalid encoded image: {reason}; send a PNG", "image") from error


def preview(job: Job, x0: Tensor, models: ModelStore, form: Format = "png", full_size: bool = False) -> bytes:
    """An unfinished image as a file, in the size of the latents or enlarged to the size of the image."""
    image = models.facts[job.request.model].preview(x0)
    image = blurred(image) if job.blurs_previews else image
    if full_size:
        image = image.resize(job.request.output_size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, form.upper())
    return buffer.getvalue()
