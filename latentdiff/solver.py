"""Ordinary differential equations, solved to a tolerance."""

from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff.errors import NonFiniteError

NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SMALLEST = 1e-9


def solve(
    slope: Callable[[Tensor, float], Tensor], y: Tensor, start: float, end: float, tolerance: float = 1e-5
) -> Tensor:
    """y [B, ...] at `end`, with dy/dt = slope(y, t) from `start` on, in either direction.

    The pair of orders 5 and 4 of Dormand & Prince (1980, table 2); a step is kept when the error of every row, over
    1 + |y| and in the mean square, is below `tolerance`. Raises NonFiniteError when no step is short enough.
    """
    t, step = start, (end - start) / 20
    first = slope(y, t)
    while t != end:
        step = end - t if abs(step) >= abs(end - t) else step
        slopes = [first]
        for node, weights in zip(NODES[1:], STAGES, strict=True):
            new = y + step * _sum(weights, slopes)
            slopes.append(slope(new, t + node * step))
        error = (step * _sum(ERROR, slopes) / (1 + torch.maximum(y.abs(), new.abs()))).flatten(1)
        size = float(error.square().mean(1).sqrt().max()) / tolerance
        if size <= 1:  # the last stage is the new value and its slope
            t, y, first = (end if step == end - t else t + step), new, slopes[-1]
        elif abs(step) < SMALLEST or not torch.isfinite(error).all():
            raise NonFiniteError(f"the equation has no step that is short enough at {t:.6f}; raise the tolerance")
        step *= min(5.0, max(0.2, 0.9 * max(size, 1e-10) ** -0.2))
    return y


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return torch.stack(terms).sum(0)
