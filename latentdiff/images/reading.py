"""Convert images in any supported form (paths, bytes, PIL, numpy, torch, or lists of these) to PIL images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentdiff.errors import InputError, shorten
from latentdiff.images.decoding import MAX_PIXELS, count_frames, decode, decode_mask, mask_of, to_rgb

ImageInput = str | Path | bytes | Image.Image | np.ndarray | Tensor
"""One image, or for arrays and tensors a batch: paths and bytes of files, PIL, [H, W, 3] arrays, [3, H, W] tensors."""


def read_images(value: ImageInput | Sequence[ImageInput], name: str = "image") -> list[Image.Image]:
    """Read RGB images. Arrays and tensors contain uint8 values, or floating-point values from 0 to 1.

    Raises InputError for anything else, for animations, for more than `MAX_PIXELS` pixels, and for files that cannot be
    read.
    """
    return _read(value, name, decode, lambda image: to_rgb(image, "white"))


def read_masks(value: ImageInput | Sequence[ImageInput], name: str = "mask_image") -> list[Image.Image]:
    """Read masks as images of mode L, 255 where the image is repainted: a transparent mask's alpha, else brightness."""
    return _read(value, name, decode_mask, mask_of)


def _read(
    value: Any,
    name: str,
    from_bytes: Callable[[bytes, str], Image.Image],
    from_image: Callable[[Image.Image], Image.Image],
) -> list[Image.Image]:
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"{name}={value!r} is empty; pass at least one image")
        return [image for one in value for image in _read(one, name, from_bytes, from_image)]
    if isinstance(value, Image.Image):
        if value.width * value.height > MAX_PIXELS:
            raise InputError(f"{name} is {value.width}x{value.height}, more than {MAX_PIXELS} pixels; reduce it first")
        return [from_image(value)]
    if isinstance(value, np.ndarray | Tensor):
        return [from_image(image) for image in _from_numbers(value, name)]
    if isinstance(value, str | Path):
        data, name = _file_bytes(Path(value)), str(value)
    elif isinstance(value, bytes):
        data = value
    else:
        raise InputError(f"{name}={shorten(value)} is not an image; pass a path, PIL image, array or tensor")
    if (frames := count_frames(data, name)) > 1:
        raise InputError(f"{name} is an animation of {frames} frames; save one frame as an image file")
    return [from_bytes(data, name)]


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _from_numbers(values: np.ndarray | Tensor, name: str) -> list[Image.Image]:
    """Images of [H, W], [H, W, C] or [B, H, W, C] arrays, and of [H, W], [C, H, W] or [B, C, H, W] tensors."""
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        values = tensor.numpy() if tensor.ndim == 2 else tensor.movedim(-3, -1).numpy()
    if values.ndim == 2:
        values = values[..., None]
    batch = values[None] if values.ndim == 3 else values
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or 0 in batch.shape:
        raise InputError(
            f"{name} has shape {list(values.shape)}; pass [H, W, 3] arrays or [3, H, W] tensors, or batches of them"
        )
    if batch.dtype.kind == "f":
        low, high = float(batch.min()), float(batch.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"{name} has values from {low:g} to {high:g}; floating-point images must be from 0 to 1; rescale them"
            )
        batch = np.round(batch * 255).astype(np.uint8)
    elif batch.dtype == bool:
        batch = batch.astype(np.uint8) * 255
    elif batch.dtype != np.uint8:
        raise InputError(f"{name} has dtype {batch.dtype}; pass uint8, or floating-point values from 0 to 1")
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in batch]


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image to float32 [C, H, W] in [0, 1]."""
    array = torch.from_numpy(np.array(image))
    return (array[None] if array.ndim == 2 else array.permute(2, 0, 1)).float().div_(255)
