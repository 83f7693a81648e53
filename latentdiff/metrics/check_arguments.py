"""Check the arguments of metrics."""

from typing import Any

import torch
from torch import Tensor

from latentdiff.errors import InputError, NonFiniteError


def as_rows(values: Any, name: str, least: int = 1) -> Tensor:
    """Values [N, D], from torch, numpy or lists, as a float64 tensor.

    Raises InputError for another shape or fewer than `least` rows, NonFiniteError for NaN or infinity.
    """
    rows = torch.as_tensor(values).detach().cpu().double()
    if rows.ndim != 2:
        raise InputError(f"{name} has the shape {list(rows.shape)} and must be [pictures, features]; flatten the rest")
    if len(rows) < least:
        raise InputError(f"{name} has {len(rows)} rows and must have at least {least}; use more pictures")
    finite = torch.isfinite(rows).all(dim=1)
    if not finite.all():
        bad = int((~finite).sum())
        first = int((~finite).nonzero()[0])
        raise NonFiniteError(f"{name}: {bad} of {len(rows)} rows contain NaN or infinity; check the first, {first}")
    return rows


def as_two(generated: Any, real: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    """`as_rows` of two sets, [N, D] and [M, D]. Raises InputError if D differs."""
    first, second = as_rows(generated, "generated", least), as_rows(real, "real", least)
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"generated has {first.shape[1]} features per picture, real has {second.shape[1]}; use one network"
        )
    return first, second


def as_pairs(image: Any, text: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings of pictures and of their captions, [N, D] each, normalised to length 1. Raises InputError."""
    first, second = as_rows(image, "image", least), as_rows(text, "text", least)
    if first.shape != second.shape:
        raise InputError(
            f"image has shape {list(first.shape)} and text {list(second.shape)}; use pairs from one CLIP model"
        )
    return torch.nn.functional.normalize(first), torch.nn.functional.normalize(second)
