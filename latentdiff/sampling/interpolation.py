"""Spherical interpolation of noise."""

import math

import torch
from torch import Tensor


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of two tensors of equal shape, each treated as one vector; t from 0 to 1.

    Unlike the mean of two samples of noise, the result has the norm of a sample. Parallel vectors are interpolated
    linearly.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0)
    angle = math.acos(min(max(float(cosine), -1.0), 1.0))
    if math.sin(angle) < 1e-6:
        return (1 - t) * first + t * second
    return math.sin((1 - t) * angle) / math.sin(angle) * first + math.sin(t * angle) / math.sin(angle) * second
