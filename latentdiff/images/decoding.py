"""From the bytes of a picture to pixels, whatever its mode; and nothing decoded that is too large."""

import io

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from latentdiff.errors import InputError

MAX_PIXELS = 64 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow knows more, some run other programs


def decode(data: bytes, name: str, background: str = "white") -> Image.Image:
    """The first frame as RGB: turned by EXIF, transparency laid on `background`, 16 bits brought to 8.

    Raises InputError naming the picture when it is none, is cut short, or has over 64 million pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"{name}: {opened.width}x{opened.height} is over {MAX_PIXELS} pixels; shrink it first")
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened), background)
    except InputError:
        raise
    except Exception as error:  # Pillow lets through whatever its readers meet in damaged bytes, struct.error for one
        raise _unreadable(name, error) from error


def measure(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of a picture as it is seen, turned by EXIF, without decoding it. Raises InputError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (opened.height, opened.width) if turned else opened.size
    except Exception as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> InputError:
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "of no known format" if unknown else " ".join(str(error).split()) or "cut short"
    return InputError(f"{name}: not a readable image ({reason}); replace or remove it")


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 1.0 if values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0
        return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """The short side becomes `resolution`, the centre square is kept."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image to float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)
