"""Precision, recall, density and coverage, computed with balls around features up to their k-th nearest neighbour."""

from typing import Any

import torch
from torch import Tensor

from latentdiff.metrics.check_arguments import as_two

AT_ONCE = 1024


def precision_recall(generated: Any, real: Any, neighbours: int = 3) -> dict[str, float]:
    """`precision`: the share of generated pictures inside a ball of the real ones; `recall`: the other way round.

    Features [N, D] and [M, D]. Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric", eq. 1 and 2.
    Raises InputError, NonFiniteError.
    """
    first, second = as_two(generated, real, least=neighbours + 1)
    return {
        "precision": _inside(first, second, neighbours).any(1).double().mean().item(),
        "recall": _inside(second, first, neighbours).any(1).double().mean().item(),
    }


def density_coverage(generated: Any, real: Any, neighbours: int = 5) -> dict[str, float]:
    """`density`: mean number of real balls that contain a generated picture, divided by k; `coverage`: share of real
    balls that contain one.

    Less sensitive to outliers than precision and recall, and only real pictures have balls. Density can exceed 1.
    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics", eq. 3 and 4. Raises InputError, NonFiniteError.
    """
    first, second = as_two(generated, real, least=neighbours + 1)
    inside = _inside(first, second, neighbours)
    return {
        "density": inside.sum(1).double().mean().item() / neighbours,
        "coverage": inside.any(0).double().mean().item(),
    }


def _inside(points: Tensor, centres: Tensor, neighbours: int) -> Tensor:
    """bool [N, M]: whether a point is within the ball of a centre, up to the centre's k-th nearest neighbour."""
    own = [torch.cdist(part, centres).kthvalue(neighbours + 1).values for part in centres.split(AT_ONCE)]
    radius = torch.cat(own)
    return torch.cat([torch.cdist(part, centres) <= radius for part in points.split(AT_ONCE)])
