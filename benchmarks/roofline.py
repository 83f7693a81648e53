"""The most that matrix products reach here: a contestant like the others, and the measure of their share."""

from collections.abc import Callable

import torch
from torch import Tensor

NAME = "matrix product bfloat16"
# Rows, inner and columns. On a CPU the sizes of a U-Net's feed-forward layers reach more than larger squares do.
SIZES = {"cpu": (8192, 640, 2560), "cuda": (8192, 8192, 8192)}


def flops(device: str) -> int:
    """Of the one product that is timed."""
    rows, inner, columns = SIZES[torch.device(device).type]
    return 2 * rows * inner * columns


def build(_: str, device: str) -> Callable[[], Tensor]:
    """A bfloat16 product; on the CPU with a matrix that oneDNN packed beforehand."""
    rows, inner, columns = SIZES[torch.device(device).type]
    x = torch.randn(rows, inner, dtype=torch.bfloat16, device=device)
    weight = torch.randn(columns, inner, dtype=torch.bfloat16, device=device)
    if x.is_cuda or not torch.backends.mkldnn.is_available():
        return lambda: x @ weight.T
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
