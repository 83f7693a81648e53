"""Write images with their recipe, as our JSON and as A1111's `parameters` text."""

from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from latentdiff.errors import InputError
from latentdiff.files import atomic_path
from latentdiff.recipe.embedded_text import OURS, UTF16
from latentdiff.recipe.infotext import write_infotext
from latentdiff.recipe.schema import Recipe

CHUNK = "latentdiff"
MAX_EXIF = 65_000  # bytes: the EXIF segment of a JPEG has a 16-bit length
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
"""Pillow's format and options for each suffix; all except JPEG are lossless."""


def check_suffix(path: Path) -> None:
    """Raise InputError unless the suffix is that of a supported format."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"-o {path} must end in one of {', '.join(FORMATS)}; try {path.stem or 'image'}.png")


def write_image(image: Image.Image, recipe: Recipe, path: Path) -> None:
    """Save a PNG, WebP or JPEG with its recipe.

    Raises InputError for another suffix, and if the file cannot be written; no partial file remains.
    """
    check_suffix(path)
    kind, options = FORMATS[path.suffix.lower()]
    width, height = image.size if recipe.hires is None else (recipe.width, recipe.height)
    metadata = image_metadata(kind, recipe, width, height)
    try:
        with atomic_path(path) as partial:
            image.save(partial, format=kind, **options, **metadata)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); free space or choose another file") from error


def image_metadata(kind: str, recipe: Recipe, width: int, height: int) -> dict[str, Any]:
    """The arguments of Pillow's `save` that store a recipe in a file of this kind. Raises InputError if too large.

    width, height: of the image, before a second pass if any.
    """
    text = write_infotext(recipe, width, height)
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(CHUNK, recipe.model_dump_json())
        chunks.add_text("parameters", text)
        return {"pnginfo": chunks}
    if kind == "GIF":
        return {"comment": CHUNK.encode() + b"\0" + recipe.model_dump_json().encode()}
    exif = Image.Exif()
    fields = exif.get_ifd(ExifTags.IFD.Exif)
    fields[ExifTags.Base.UserComment] = UTF16 + text.encode("utf-16-be")
    fields[ExifTags.Base.MakerNote] = OURS + recipe.model_dump_json().encode()
    if kind == "JPEG" and len(exif.tobytes()) > MAX_EXIF:
        raise InputError(f"the recipe is larger than the {MAX_EXIF} bytes of a JPEG's metadata; write a .png or .webp")
    return {"exif": exif}
