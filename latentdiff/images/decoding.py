"""Decode the bytes of image files to RGB images and masks, with limits on size and memory."""

import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from latentdiff.errors import InputError

# MAX_PIXELS is lower than Pillow's limit, and exceeding it is an error
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
Result = TypeVar("Result")

MAX_PIXELS = 64 * 1024 * 1024
BYTES_PER_PIXEL = 16  # at the peak of decode(): four RGBA copies while transparency is flattened
BYTES_PER_OPAQUE_PIXEL = 8  # the decoded and the rotated image
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # others of Pillow may run external programs
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # the ancillary chunks that affect the pixels
ROWS = 64


def decode(data: bytes, name: str, background: str = "white") -> Image.Image:
    """Decode the first frame to 8-bit RGB, rotated by its EXIF orientation, with transparency on a `background`.

    Raises InputError naming the file if it is not an image, is truncated, or has more than 64 million pixels.
    """

    return _read(data, name, lambda opened: to_rgb(_loaded(opened, name), background))


def decode_mask(data: bytes, name: str) -> Image.Image:
    """Decode the first frame of a mask and apply `mask_of`. Raises InputError as `decode` does."""
    return _read(data, name, lambda opened: mask_of(_loaded(opened, name)))


def count_frames(data: bytes, name: str) -> int:
    """The number of frames: 1 unless the file is animated. Raises InputError."""
    return _read(data, name, lambda opened: getattr(opened, "n_frames", 1))


def measure(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of the image that `decode` returns, without decoding it. Raises InputError."""
    return _read(data, name, _displayed_size)


def memory_needed(data: bytes, name: str) -> int:
    """The peak memory of `decode` for this file in bytes, without decoding it. Raises InputError."""

    def estimate(opened: Image.Image) -> int:
        opaque = opened.mode in ("L", "RGB") and not opened.has_transparency_data
        return opened.width * opened.height * (BYTES_PER_OPAQUE_PIXEL if opaque else BYTES_PER_PIXEL)

    return _read(data, name, estimate)


def _read(data: bytes, name: str, use: Callable[[Image.Image], Result]) -> Result:
    """Open a file and return `use` of it, if necessary without PNG metadata that is too large for Pillow."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return use(opened)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # of a size that Pillow itself refuses
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels; reduce it first") from error
    except Exception as error:  # Pillow's readers raise many types for damaged bytes, such as struct.error
        shorter = _without_png_metadata(data)
        if isinstance(error, ValueError) and len(shorter) < len(data):
            return _read(shorter, name, use)
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else " ".join(str(error).split()) or "truncated"
        raise InputError(f"{name}: not a readable image ({reason}); replace or remove it") from error


def _loaded(opened: Image.Image, name: str) -> Image.Image:
    """The decoded image in its EXIF orientation. Raises InputError for more than `MAX_PIXELS`."""
    width, height = _displayed_size(opened)
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels; reduce it first")
    opened.load()
    return ImageOps.exif_transpose(opened)


def _displayed_size(opened: Image.Image) -> tuple[int, int]:
    """Width and height after EXIF orientation; for TIFF from the tags, since Pillow has already swapped the sides."""
    width, height = opened.size
    if opened.format == "TIFF":
        tags = opened.tag_v2  # type: ignore[attr-defined]
        width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
    transposed = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if transposed else (width, height)


def _without_png_metadata(data: bytes) -> bytes:
    """A PNG file without colour profiles and texts; other data unchanged. Source: PNG specification, section 5.3."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(data):
        kind = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if kind[:1].isupper() or kind in PNG_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def mask_of(image: Image.Image) -> Image.Image:
    """Convert a mask to grey levels: its alpha channel if any pixel is transparent, else its brightness."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.histogram()[255] < alpha.width * alpha.height:
            return alpha
    return to_rgb(image, "white").convert("L")


def to_rgb(image: Image.Image, background: str) -> Image.Image:
    """Convert to 8-bit RGB; transparent pixels are blended with a background colour."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Convert 16-bit, 32-bit or floating-point values to uint8 [H, W], in blocks of rows to bound the memory."""
    top = 65535.0
    if values.dtype.kind != "u":  # the range is not stated: choose the smallest usual one that contains all values
        highest = np.fmax.reduce(values, axis=None)
        top = 1.0 if highest <= 1 else 255.0 if highest <= 255 else 65535.0
    scaled = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), ROWS):
        block = np.nan_to_num(values[start : start + ROWS].astype(np.float32)) * np.float32(255 / top)
        scaled[start : start + ROWS] = block.clip(0, 255).round()
    return scaled


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)
