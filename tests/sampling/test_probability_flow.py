"""The score and the probability flow against the closed forms for a Gaussian."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from latentdiff.config.schedule import PredictionType, ScheduleConfig
from latentdiff.denoiser import NetworkDenoiser
from latentdiff.models.conditioning import Conditioning
from latentdiff.sampling.loop import Denoiser
from latentdiff.sampling.probability_flow import flow, level_at, log_likelihood, score, solve
from latentdiff.sampling.schedule import Schedule

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
EXACT = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)  # the mean of e e^T over both is the identity
KINDS: list[PredictionType] = ["epsilon", "sample", "v_prediction", "flow"]


def schedule(kind: PredictionType) -> Schedule:
    zero = kind in ("sample", "v_prediction")
    return Schedule(
        ScheduleConfig(beta_schedule="squaredcos_cap_v2", prediction_type=kind, rescale_betas_zero_snr=zero)
    )


def marginal(levels: Schedule, timestep: float) -> torch.distributions.MultivariateNormal:
    level = level_at(levels, timestep)
    covariance = level.alpha**2 * COVARIANCE + level.sigma**2 * torch.eye(2, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(level.alpha * MEAN, covariance)


def exact(levels: Schedule) -> Denoiser:
    """The prediction of a perfect model of the Gaussian."""

    def network(x: Tensor, timesteps: Tensor, _: Conditioning) -> Tensor:
        timestep = float(timesteps[0])
        level, p = level_at(levels, timestep), marginal(levels, timestep)
        x0 = MEAN + level.alpha * (x - p.mean) @ p.precision_matrix @ COVARIANCE
        noise = (x - level.alpha * x0) / level.sigma
        answers = {"epsilon": noise, "sample": x0, "flow": noise - x0}
        return answers.get(levels.config.prediction_type, level.alpha * noise - level.sigma * x0)

    return partial(NetworkDenoiser(network, levels, torch.float64), conditioning=Conditioning(torch.zeros(1, 1, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_levels_equal_the_table_and_interpolate_between_its_entries(kind: PredictionType) -> None:
    levels = schedule(kind)
    for t in (0, 1, 500, 999):
        assert level_at(levels, t).alpha == pytest.approx(levels.alphas[t].item(), abs=1e-12)
        assert level_at(levels, t).sigma == pytest.approx(levels.sigmas[t].item(), abs=1e-12)
    between, h = level_at(levels, 400.5), 1e-6
    assert levels.sigmas[400] < between.sigma < levels.sigmas[401]
    assert between.alpha + between.sigma == pytest.approx(1) or math.hypot(between.alpha, between.sigma) == (
        pytest.approx(1)
    )
    near = level_at(levels, 400.5 + h)
    for name in ("alpha", "sigma"):
        slope = (getattr(near, name) - getattr(between, name)) / (near.coordinate - between.coordinate)
        assert slope == pytest.approx(getattr(between, f"{name}_slope"), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timestep", [0, 300, 777.25])
def test_the_score_is_the_gradient_of_the_log_density(kind: PredictionType, timestep: float) -> None:
    levels = schedule(kind)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(marginal(levels, timestep).log_prob(x).sum(), x)
    found = score(exact(levels), levels, x, timestep)
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timestep", [0.0, 123.5])
def test_the_likelihood_is_the_gaussians(kind: PredictionType, timestep: float) -> None:
    levels = schedule(kind)
    x = marginal(levels, timestep).sample((6,))
    probes = EXACT[:, None].expand(2, 6, 2)
    found = log_likelihood(exact(levels), levels, x, probes, timestep, tolerance=1e-7)
    assert torch.allclose(found, marginal(levels, timestep).log_prob(x), atol=2e-4)


def test_one_probe_gives_the_likelihood_on_average() -> None:
    levels, x = schedule("v_prediction"), MEAN.expand(2000, 2)
    probes = torch.randint(0, 2, (1, 2000, 2)).double() * 2 - 1
    found = log_likelihood(exact(levels), levels, x, probes)
    expected = marginal(levels, 0).log_prob(MEAN)
    assert found.std() > 0.05
    assert found.mean().item() == pytest.approx(expected.item(), abs=4 * found.std().item() / 2000**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_flows_to_the_distribution_and_back(kind: PredictionType) -> None:
    """A flow of a Gaussian is affine: a few points, weighted as N(0, I) would be, give mean and covariance exactly."""
    levels = schedule(kind)
    noise = math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)]).double()
    x = flow(exact(levels), levels, noise, 999, 0, tolerance=1e-8)
    assert torch.allclose(x.mean(0), marginal(levels, 0).mean, atol=1e-4)
    assert torch.allclose(x.T.cov(correction=0), marginal(levels, 0).covariance_matrix, atol=2e-4)
    assert torch.allclose(flow(exact(levels), levels, x, 0, 999, tolerance=1e-8), noise, atol=1e-4)


@pytest.mark.parametrize(("start", "end"), [(0.0, 3.0), (3.0, 0.0)])
def test_the_solver_keeps_its_tolerance_with_steps_expected_from_its_order(start: float, end: float) -> None:
    calls = []

    def slope(y: Tensor, t: float) -> Tensor:
        calls.append(t)
        return y * math.cos(5 * t) * 5

    counts = []
    for tolerance in (1e-6, 1e-11):
        calls.clear()
        y = solve(slope, torch.tensor([[1.0], [-2.0]], dtype=torch.float64), start, end, tolerance)
        exact = math.exp(math.sin(5 * end) - math.sin(5 * start))
        assert torch.allclose(y, exact * torch.tensor([[1.0], [-2.0]], dtype=torch.float64), rtol=100 * tolerance)
        counts.append(len(calls))
    assert counts[1] < 14 * counts[0]  # 10 times the steps for 1e5 of the error
