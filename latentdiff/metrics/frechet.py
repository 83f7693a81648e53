"""Frechet distance between Gaussians fitted to two sets of features."""

from typing import Any

import torch
from torch import Tensor

from latentdiff.metrics.check_arguments import as_two


def frechet_distance(generated: Any, real: Any) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians fitted to features [N, D] and [M, D].

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); with the features of FID's Inception network this is FID. It is biased
    upwards for few pictures. torchmetrics takes eigenvalues of a D x D matrix: 3 to 80 times as long for D = 1280.
    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6. Raises InputError, NonFiniteError.
    """
    first, second = as_two(generated, real, least=2)
    shift = (first.mean(0) - second.mean(0)).square().sum()
    root1, root2 = _root(first), _root(second)
    spread = root1.square().sum() + root2.square().sum() - 2 * torch.linalg.svdvals(root1 @ root2.T).sum()
    return max(0.0, float(shift + spread))


def _root(rows: Tensor) -> Tensor:
    """R [min(N, D), D] with R^T R equal to the covariance.

    With S = R^T R for both sets, the eigenvalues of S1 S2 are the squared singular values of R1 R2^T. This avoids a
    matrix square root and its small negative eigenvalues.
    """
    centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    return centred if len(rows) <= rows.shape[1] else torch.linalg.qr(centred, mode="r").R
