"""The recipe of a picture, kept in the PNG's text chunks: enough to make the same pixels again."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from latentdiff.errors import InputError
from latentdiff.files import atomic_path

CHUNK = "latentdiff"
LoraUse = tuple[str, float, float]  # file or folder, weight for the U-Net, for the text encoders
MAX_PIXELS = 64 * 1024 * 1024


class Recipe(BaseModel):
    """Everything a picture depends on. `model_hash` covers the model, LoRAs and embeddings (see `model_hash`)."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    prompt: str
    negative_prompt: str | None = None
    seed: int
    sampler: str
    spacing: str | None = None
    eta: float
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    height: int
    width: int
    dtype: str
    optimize: str = "auto"
    approximate: tuple[str, ...] = ()
    low_memory: bool = False
    model: str | None = None
    vae: str | None = None
    unet: str | None = None
    variant: str | None = None
    prediction_type: str | None = None
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[str, ...] = ()
    model_hash: str
    version: str

    @model_validator(mode="before")
    @classmethod
    def _one_lora_and_one_embedding(cls, raw: Any) -> Any:
        """Recipes before version 0.2 had one of each."""
        if isinstance(raw, dict) and raw.get("lora") is not None:
            raw = {**raw, "loras": [[raw["lora"], raw.get("lora_scale", 1.0), raw.get("lora_scale", 1.0)]]}
        if isinstance(raw, dict) and raw.get("embedding") is not None:
            raw = {**raw, "embeddings": [raw["embedding"]]}
        return raw


def write_png(image: Image.Image, recipe: Recipe, path: Path) -> None:
    """Save with two text chunks: `latentdiff`, JSON for machines, and `parameters`, a line for people.

    Raises InputError when the disk is full or refuses the file; nothing is left of it then.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, recipe.model_dump_json())
    chunks.add_itxt("parameters", _in_words(recipe))
    try:
        with atomic_path(path) as partial:
            image.save(partial, format="PNG", pnginfo=chunks)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); free space or name another place") from error


def read_recipe(path: Path) -> Recipe:
    """The recipe in a PNG. Raises InputError for any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path} is {image.width}x{image.height}, over {MAX_PIXELS} pixels; give a smaller one"
                )
            image.load()
            text = getattr(image, "text", {}).get(CHUNK)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give a PNG that latentdiff made") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no readable PNG ({error}); give a PNG that latentdiff made") from error
    if text is None:
        raise InputError(f"{path} holds no recipe; give a PNG that latentdiff made and that no program rewrote")
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: its recipe is damaged at {first['loc']}: {first['msg']}; make it anew") from error


def _in_words(recipe: Recipe) -> str:
    values: dict[str, Any] = json.loads(recipe.model_dump_json(exclude={"prompt", "negative_prompt"}))
    negative = f"\nNegative prompt: {recipe.negative_prompt}" if recipe.negative_prompt else ""
    return f"{recipe.prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in values.items())
