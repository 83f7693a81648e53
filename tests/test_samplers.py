"""Sampler tables: exact marginals, orders of convergence, and diffusers' schedulers step by step."""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from latentdiff.config.model import ScheduleConfig
from latentdiff.errors import InputError
from latentdiff.samplers import SAMPLERS, Plan, ddim_table, dpmpp_2m_table, plan, sample
from latentdiff.schedule import Grid, Schedule

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COUNTS = [7, 20, 25, 30]


def schedule(**changes: Any) -> Schedule:
    return Schedule(ScheduleConfig(**(SD | {"steps_offset": 0} | changes)))


def levels(spacing: str, count: int, **changes: Any) -> Grid:
    return schedule(timestep_spacing=spacing, **changes).grid(count, clean=True)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("count", [1, 2, *COUNTS])
def test_every_step_lands_on_the_next_marginal(name: str, spacing: str, count: int) -> None:
    """Where x = a * x0 + s * noise and x0 is known, the next must be a' * x0 + s' * noise', whatever N and T."""
    grid = levels(spacing, count)
    c_latent, c_x0, c_prev, c_noise = SAMPLERS[name].table(grid).unbind(1)
    signal = c_latent * grid.alphas[:-1] + c_x0 + c_prev
    variance = (c_latent * grid.sigmas[:-1]).square() + c_noise.square()
    assert torch.allclose(signal, grid.alphas[1:], atol=1e-12)
    assert torch.allclose(variance, grid.sigmas[1:].square(), atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", COUNTS)
def test_ddim_lands_on_the_next_marginal_for_any_eta_and_on_flow(eta: float, count: int) -> None:
    for grid in (levels("leading", count), schedule(prediction_type="flow").grid(count, "trailing")):
        c_latent, c_x0, _, c_noise = ddim_table(grid, eta).unbind(1)
        assert torch.allclose(c_latent * grid.alphas[:-1] + c_x0, grid.alphas[1:], atol=1e-12)
        variance = (c_latent * grid.sigmas[:-1]).square() + c_noise.square()
        assert torch.allclose(variance, grid.sigmas[1:].square(), atol=1e-12)


def test_ddim_eta_is_equation_16() -> None:
    grid = levels("leading", 20)
    a, a_next = grid.alphas[:-1].square(), grid.alphas[1:].square()
    expected = 0.7 * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()
    assert torch.allclose(ddim_table(grid, 0.7)[:, 3], expected, atol=1e-12)


def test_lcm_lands_on_the_next_marginal_but_for_its_boundary_weights() -> None:
    grid = schedule().grid(4, "lcm", clean=True)
    c_latent, c_x0, _, c_noise = SAMPLERS["lcm"].table(grid).unbind(1)
    assert torch.allclose(c_latent * grid.alphas[:-1] + c_x0, grid.alphas[1:], atol=1e-5)
    assert torch.equal(c_noise, grid.sigmas[1:])


def gaussian_grid(count: int) -> Grid:
    """Even steps in lambda = log(alpha / sigma) from -3 to 2."""
    ratio = torch.linspace(3, -2, count + 1, dtype=torch.float64).exp()
    alphas = (1 + ratio.square()).rsqrt()
    return Grid(torch.arange(count, dtype=torch.float64).flip(0), alphas, alphas * ratio)


def error_on_gaussian_data(table: Callable[[Grid], Tensor], count: int, mean: float = 0.4, std: float = 0.3) -> float:
    """Distance from the exact end of the probability flow, whose score is known for normal data."""
    grid = gaussian_grid(count)
    x = torch.tensor([1.3], dtype=torch.float64)
    spread = (grid.alphas.square() * std**2 + grid.sigmas.square()).sqrt()
    exact = grid.alphas[-1] * mean + spread[-1] / spread[0] * (x - grid.alphas[0] * mean)
    position = {t: i for i, t in enumerate(grid.timesteps.tolist())}

    def x0(latents: Tensor, timestep: float) -> Tensor:
        i = position[timestep]
        return mean + grid.alphas[i] * std**2 / spread[i].square() * (latents - grid.alphas[i] * mean)

    rows = [tuple(row) for row in table(grid).tolist()]
    found = sample(x0, x, Plan(grid.timesteps.tolist(), [(0.0, 1.0)] * count, rows), torch.Tensor)
    return (found - exact).abs().item()


@pytest.mark.parametrize(("table", "order"), [(ddim_table, 1), (dpmpp_2m_table, 2)])
def test_order_of_convergence(table: Callable[[Grid], Tensor], order: int) -> None:
    errors = [error_on_gaussian_data(table, count) for count in (40, 80, 160, 320)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), slopes


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde"])
def test_noisy_samplers_reach_the_data_they_know(name: str) -> None:
    """Mean and deviation of normal data, by the affine map of each step; more steps come closer."""
    distances = []
    for count in (50, 200):
        grid = gaussian_grid(count)
        spread2 = grid.alphas.square() * 0.3**2 + grid.sigmas.square()
        gain = grid.alphas[:-1] * 0.3**2 / spread2[:-1]
        # Rows are affine in all past noise, so carry the response to each: start, then one column a step.
        x = torch.zeros(count + 1, dtype=torch.float64)
        x[0] = spread2[0].sqrt()
        x0_prev = torch.zeros_like(x)
        for i, (c_latent, c_x0, c_prev, c_noise) in enumerate(SAMPLERS[name].table(grid).tolist()):
            x0 = gain[i] * x
            x, x0_prev = c_latent * x + c_x0 * x0 + c_prev * x0_prev, x0
            x[i + 1] += c_noise
        distances.append(abs(x.norm().item() / spread2[-1].sqrt().item() - 1))
    assert distances[1] < distances[0] / 2 and distances[1] < 0.02


def model(x: Tensor, timestep: float) -> Tensor:
    """A stand-in with a bounded, smooth answer."""
    return torch.tanh(0.7 * x + math.sin(timestep)) * 0.8


def ours_step_by_step(name: str, s: Schedule, timesteps: Tensor, start: Tensor, noises: list[Tensor]) -> list[Tensor]:
    grid = s.grid_at(timesteps, clean=True)
    c = torch.stack(s.x0_coefficients(grid.alphas[:-1], grid.sigmas[:-1]), 1).tolist()
    rows = [tuple(row) for row in SAMPLERS[name].table(grid).tolist()]
    run = Plan(timesteps.tolist(), [tuple(pair) for pair in c], rows)
    queue, seen = iter(noises), []
    sample(model, start.double(), run, lambda: next(queue).double(), lambda *args: seen.append(args[2].float()))
    return seen


def theirs_step_by_step(scheduler: Any, start: Tensor) -> list[Tensor]:
    """diffusers' latents after each step, in variance-preserving coordinates."""
    ve = hasattr(scheduler, "is_scale_input_called")
    scale = [math.sqrt(float(s) ** 2 + 1) for s in scheduler.sigmas] if ve else None
    x = start * scale[0] if scale else start
    seen = []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
        seen.append(x / scale[i + 1] if scale else x)
    return seen


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The noise that both sides draw, in order."""
    values = [torch.randn(2, 3) for _ in range(1000)]
    queue = iter(values)
    for module in ("ddpm", "euler_ancestral_discrete", "dpmsolver_multistep", "lcm"):
        path = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(path, lambda *_, **__: next(queue))
    return values


def compare(name: str, scheduler: Any, s: Schedule, noises: list[Tensor]) -> None:
    start = torch.randn(2, 3)
    theirs = theirs_step_by_step(scheduler, start)
    ours = ours_step_by_step(name, s, scheduler.timesteps.double(), start, noises)
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a - b).abs().max() < 2e-4, f"step {step}"


PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [20, 25])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_and_ddpm_equal_diffusers_where_n_divides_t(
    prediction: str, count: int, spacing: str, noises: list[Tensor]
) -> None:
    """Elsewhere diffusers steps to t - T // N, which is not the next timestep it visits; the marginals above hold."""
    s = schedule(prediction_type=prediction, timestep_spacing=spacing)
    common = SD | {"prediction_type": prediction, "clip_sample": False, "timestep_spacing": spacing}
    for name, scheduler in (
        ("ddim", diffusers.DDIMScheduler(**common, set_alpha_to_one=True)),
        ("ddpm", diffusers.DDPMScheduler(**common)),
    ):
        if (name, spacing) == ("ddpm", "trailing"):
            continue  # its last step adds noise again, to a picture that is done
        scheduler.set_timesteps(count)
        compare(name, scheduler, s, noises)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", COUNTS)
def test_euler_and_ancestral_equal_diffusers(prediction: str, count: int, noises: list[Tensor]) -> None:
    s = schedule(prediction_type=prediction)
    common = SD | {"prediction_type": prediction, "timestep_spacing": "trailing"}
    if prediction != "sample":  # diffusers' ancestral scheduler has no sample prediction
        ancestral = diffusers.EulerAncestralDiscreteScheduler(**common)
        ancestral.set_timesteps(count)
        compare("euler_ancestral", ancestral, s, noises)
    scheduler = diffusers.EulerDiscreteScheduler(**common)
    scheduler.set_timesteps(count)
    compare("euler", scheduler, s, noises)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_dpm_solver_equals_diffusers(name: str, prediction: str, count: int, noises: list[Tensor]) -> None:
    algorithm = {"dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++"}[name]
    common = SD | {"prediction_type": prediction, "timestep_spacing": "trailing"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**common, algorithm_type=algorithm)
    scheduler.set_timesteps(count)
    compare(name, scheduler, schedule(prediction_type=prediction), noises)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_lcm_equals_diffusers(count: int, noises: list[Tensor]) -> None:
    scheduler = diffusers.LCMScheduler(**SD)
    scheduler.set_timesteps(count)
    compare("lcm", scheduler, schedule(), noises)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_zero_terminal_snr_stays_finite(name: str, beta_schedule: str, count: int) -> None:
    s = schedule(
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    run = plan(s, name, count)
    assert np.isfinite(run.table).all() and np.isfinite(run.to_x0).all()
    done = sample(model, torch.randn(2, 3), run, lambda: torch.randn(2, 3))
    assert torch.isfinite(done).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddmi", 20, 0.0), "sampler='ddmi' is unknown; did you mean"),
        (("x", 20, 0.0), "known: ddim, ddpm, dpmpp_2m"),
        (("ddim", 20, 1.5), "eta=1.5 must be from 0 to 1"),
        (("euler", 20, 0.5), "eta=0.5 is only read by sampler='ddim'"),
        (("lcm", 51, 0.0), "at most 50 with sampler 'lcm'"),
    ],
)
def test_what_cannot_be_planned(arguments: tuple[str, int, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(schedule(), *arguments)
