"""Kernel distance: the formula of KID, an unbiased estimate of the squared maximum mean discrepancy."""

from typing import Any

from torch import Tensor

from latentdiff.metrics.check_arguments import as_two

AT_ONCE = 1024


def kernel_distance(generated: Any, real: Any) -> float:
    """Unbiased squared maximum mean discrepancy of features [N, D] and [M, D] under k(x, y) = (x.y / D + 1)^3.

    KID computed on all pictures at once instead of random subsets (torchmetrics' version needs sets of equal size). Its
    expectation is 0 for equal distributions, so it can be negative. Binkowski et al. 2018, "Demystifying MMD GANs",
    section 4; Gretton et al. 2012, eq. 3.
    Raises InputError, NonFiniteError.
    """
    first, second = as_two(generated, real, least=2)
    n, m = len(first), len(second)
    across = _sum(first, second) / (n * m)
    return (
        (_sum(first, first) - _itself(first)) / (n * (n - 1))
        + (_sum(second, second) - _itself(second)) / (m * (m - 1))
        - 2 * across
    )


def _sum(first: Tensor, second: Tensor) -> float:
    """The kernel summed over all pairs."""
    return float(sum((part @ second.T / second.shape[1] + 1).pow(3).sum() for part in first.split(AT_ONCE)))


def _itself(rows: Tensor) -> float:
    """The kernel of each row with itself, which the unbiased mean excludes."""
    return float((rows.square().sum(1) / rows.shape[1] + 1).pow(3).sum())
