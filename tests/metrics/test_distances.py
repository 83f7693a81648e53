"""Each metric against a closed form, and against torchmetrics if it has the metric."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from latentdiff.errors import InputError, NonFiniteError
from latentdiff.metrics import density_coverage, frechet_distance, kernel_distance, precision_recall, sliced_wasserstein
from latentdiff.metrics.inception_score import class_score
from latentdiff.metrics.wasserstein import draw_patches, laplacian_pyramid, texture_distance, upscale


def normal(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(mean: Tensor, root: Tensor, count: int, seed: int) -> Tensor:
    """Points whose sample mean is `mean` and whose sample covariance is root root^T, to rounding."""
    points = normal(count, len(mean), seed)
    points = points - points.mean(0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(points.T @ points / (count - 1))).T
    return white @ root.T + mean


def test_frechet_of_gaussians_with_diagonal_covariances() -> None:
    means, spreads = (torch.zeros(3).double(), torch.tensor([1.0, -2, 0.5]).double()), ([1.0, 2, 3], [2.0, 0.5, 3])
    sets = [
        exactly(m, torch.diag(torch.tensor(s).double()), 50, k)
        for k, (m, s) in enumerate(zip(means, spreads, strict=True))
    ]
    expected = 5.25 + sum((a - b) ** 2 for a, b in zip(*spreads, strict=True))
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [12, 200])
def test_frechet_equals_the_matrix_root_with_few_and_with_many_pictures(count: int) -> None:
    first, second = normal(count, 20, 1) @ normal(20, 20, 2), normal(count + 5, 20, 3) + 0.3
    covariances = [np.cov(one.numpy(), rowvar=False) for one in (first, second)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    shift = (first.mean(0) - second.mean(0)).square().sum().item()
    expected = shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert frechet_distance(first, second.numpy()) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    values = torch.tensor([kernel_distance(normal(60, 8, 2 * k), normal(80, 8, 2 * k + 1)) for k in range(200)])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert (values < 0).any()


def test_kernel_distance_has_its_closed_form_in_one_dimension() -> None:
    """E (xy + 1)^3 = 1 + 3 E x E y + 3 E x^2 E y^2 + E x^3 E y^3 for independent x, y."""

    def expected(shift: float) -> float:
        moments = [(0.0, 1.0, 0.0), (shift, 1 + shift**2, shift**3 + 3 * shift)]

        def kernel(a: tuple[float, ...], b: tuple[float, ...]) -> float:
            return 1 + 3 * a[0] * b[0] + 3 * a[1] * b[1] + a[2] * b[2]

        (a, b) = moments
        return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)

    found = torch.tensor([kernel_distance(normal(300, 1, 2 * k), normal(300, 1, 2 * k + 1) + 0.5) for k in range(100)])
    assert abs(found.mean() - expected(0.5)) < 3 * found.std() / 10


def test_precision_recall_density_and_coverage_on_a_line() -> None:
    real = torch.tensor([[0.0], [1], [2], [10]])
    generated = torch.tensor([[0.5], [30], [31], [32]])
    assert precision_recall(generated, real, neighbours=1) == {"precision": 0.25, "recall": 1.0}  # 0.5 reaches 30
    assert precision_recall(real, generated, neighbours=1) == {"precision": 1.0, "recall": 0.25}
    # 0.5 lies in the balls (radius 1) of 0 and 1 and on none else; 30 to 32 in none
    assert density_coverage(generated, real, neighbours=1) == {"density": 0.5, "coverage": 0.5}


def test_a_set_compared_with_itself_and_with_a_distant_one() -> None:
    near, far = normal(100, 4), normal(100, 4) + 100
    assert precision_recall(near, near) == {"precision": 1.0, "recall": 1.0}
    assert density_coverage(near, near)["coverage"] == 1.0
    assert precision_recall(far, near) == {"precision": 0.0, "recall": 0.0}
    assert density_coverage(far, near) == {"density": 0.0, "coverage": 0.0}


def test_class_score_of_certain_and_of_unsure_pictures() -> None:
    assert class_score(1000 * torch.eye(7)) == pytest.approx(7)
    assert class_score(torch.zeros(9, 7)) == pytest.approx(1)
    half = torch.tensor([[0.0, 0, -1e3, -1e3], [-1e3, -1e3, 0, 0]])
    assert class_score(half) == pytest.approx(2)


def test_torchmetrics_agrees() -> None:
    first, second = normal(90, 16, 1) * 1.3, normal(90, 16, 2) + 0.2
    statistics: list[Any] = [value for one in (first, second) for value in (one.mean(0), one.T.cov())]
    assert frechet_distance(first, second) == pytest.approx(_compute_fid(*statistics).item(), rel=1e-6)
    assert kernel_distance(first, second) == pytest.approx(poly_mmd(second, first).item(), rel=1e-9)
    score = InceptionScore(feature=torch.nn.Identity(), splits=1)
    score.update(first)
    assert class_score(first) == pytest.approx(score.compute()[0].item(), rel=1e-5)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    points = normal(200, 5)
    shift = torch.tensor([3.0, 0, 4, 0, 0]).double()
    mean_projection = math.gamma(2.5) / (math.sqrt(math.pi) * math.gamma(3))  # E |u_1| on the sphere in 5 dimensions
    assert sliced_wasserstein(points, points + shift, 20_000) == pytest.approx(5 * mean_projection, rel=0.02)
    assert sliced_wasserstein(points, points) == 0


def test_sliced_wasserstein_of_two_widths_of_a_gaussian() -> None:
    found = sliced_wasserstein(normal(20_000, 1, 1), 3 * normal(20_000, 1, 2), 1)
    assert found == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.03)  # E |3x - x|


def test_sliced_wasserstein_of_sets_of_other_sizes() -> None:
    first, second = torch.tensor([[0.0], [1]]), torch.tensor([[0.0], [1], [5]])
    assert sliced_wasserstein(first, second, 1) == pytest.approx(0 + 1 / 6 + 4 / 3)  # F^-1 apart by 0, 1, 0 and 4
    many, few = normal(300, 3), normal(120, 3, 1)
    twice = sliced_wasserstein(many.repeat(2, 1), few.repeat(5, 1), 64)
    assert sliced_wasserstein(many, few, 64) == pytest.approx(twice, rel=1e-12)
    sorted_by_class = torch.cat([torch.zeros(50, 3), torch.ones(50, 3)])
    assert sliced_wasserstein(sorted_by_class[::2], sorted_by_class, 64) == pytest.approx(0, abs=1e-12)


def test_the_pyramid_adds_up_to_the_picture() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    levels = laplacian_pyramid(pixels)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = upscale(whole) + level
    assert torch.allclose(whole, pixels, atol=1e-6)
    assert [level.shape[-1] for level in laplacian_pyramid(torch.rand(1, 3, 36, 36))] == [36, 18]
    flat = laplacian_pyramid(torch.ones(1, 3, 32, 32))
    assert torch.allclose(flat[0][..., 4:-4, 4:-4], torch.zeros(24, 24), atol=1e-6)


def test_textures_differ_where_the_scale_does_and_contrast_does_not_count() -> None:
    def patches(pixels: Tensor) -> dict[int, Tensor]:
        return draw_patches(pixels, 16, torch.Generator().manual_seed(0))

    noise = torch.rand(60, 3, 32, 32) * 100
    stripes = torch.rand(60, 3, 1, 32).expand(60, 3, 32, 32) * 100
    first, dimmer, other = patches(noise), patches(noise / 2 + 50), patches(stripes)
    assert {size: drawn.shape for size, drawn in first.items()} == dict.fromkeys((32, 16), (60, 16, 3, 7, 7))
    assert texture_distance(first[32], dimmer[32]) == pytest.approx(0, abs=1e-4)
    assert texture_distance(first[32], other[32]) > 1.5 * texture_distance(
        first[32], patches(torch.rand_like(noise))[32]
    )


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, precision_recall, density_coverage])
def test_invalid_feature_sets_are_errors(metric: Any) -> None:
    good = normal(20, 4)
    with pytest.raises(InputError, match=r"20, 2, 2.*must be"):
        metric(good.view(20, 2, 2), good)
    with pytest.raises(InputError, match="real has 1 rows and must have at least"):
        metric(good, good[:1])
    with pytest.raises(InputError, match="generated has 3 features per picture, real has 4"):
        metric(good[:, :3], good)
    bad = good.clone()
    bad[7, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="real: 1 of 20 rows contain NaN or infinity; check the first, 7"):
        metric(good, bad)
