"""The peak rate of matrix products on this machine, with which the rates of the contestants are compared."""

from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff.runtime.device import DTYPES

NAME = "matrix product"
# Rows, depth and columns. On a CPU, sizes like those of a U-Net's feed-forward layers are faster than large squares.
SIZES = {"cpu": (8192, 640, 2560), "cuda": (8192, 8192, 8192)}


def flops(device: str) -> int:
    """Floating-point operations of the product that is timed."""
    rows, inner, columns = SIZES[torch.device(device).type]
    return 2 * rows * inner * columns


def name(dtype: str) -> str:
    return f"{NAME} {dtype}"


def build(name: str, device: str) -> Callable[[], Tensor]:
    """The product that `name` names; on the CPU, with a matrix that oneDNN has packed in advance."""
    rows, inner, columns = SIZES[torch.device(device).type]
    dtype = DTYPES[name.removeprefix(f"{NAME} ")]
    x = torch.randn(rows, inner, dtype=dtype, device=device)
    weight = torch.randn(columns, inner, dtype=dtype, device=device)
    if x.is_cuda or not torch.backends.mkldnn.is_available():
        return lambda: x @ weight.T
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
