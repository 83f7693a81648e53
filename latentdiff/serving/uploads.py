"""Decode images that clients send as bytes or base64, with limits."""

import base64
import binascii

from PIL import Image, ImageOps

from latentdiff.errors import InputError
from latentdiff.images.decoding import decode, decode_mask
from latentdiff.serving.errors import ServingError


def from_base64(text: str, name: str) -> bytes:
    """The bytes of base64 text, with or without a `data:` prefix. Raises ServingError; URLs are not fetched."""
    if text.startswith(("http://", "https://")):
        raise ServingError(f"{name} is a URL; this server does not fetch URLs; send the image as base64", name)
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=False)
    except (binascii.Error, ValueError) as error:
        raise ServingError(
            f"Invalid encoded image: {name} is not base64 ({error}); send a PNG as base64", name
        ) from error


def image_from(data: bytes, name: str) -> Image.Image:
    """An RGB image. Raises ServingError."""
    try:
        return decode(data, name)
    except InputError as error:
        raise ServingError(f"Invalid encoded image: {error}", name) from error


def mask_from(data: bytes, name: str, transparent_is_repainted: bool = False) -> Image.Image:
    """A mask, white where it is repainted. Raises ServingError.

    transparent_is_repainted: as in OpenAI's API; otherwise opaque areas are repainted.
    """
    try:
        mask = decode_mask(data, name)
    except InputError as error:
        raise ServingError(f"Invalid encoded image: {error}", name) from error
    return ImageOps.invert(mask) if transparent_is_repainted else mask
