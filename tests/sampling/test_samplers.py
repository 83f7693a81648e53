"""Sampler tables: exact marginals, orders of convergence, and diffusers' schedulers step by step."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.denoiser import NetworkDenoiser
from latentdiff.errors import InputError
from latentdiff.models.conditioning import Conditioning
from latentdiff.sampling.loop import Denoiser, Levels, SamplerState, StepInfo, sample, step
from latentdiff.sampling.sampler_coefficients import COLUMNS, ddim_table, dpmpp_2m_table, heun_table
from latentdiff.sampling.samplers import SAMPLERS, Plan, Update, plan
from latentdiff.sampling.schedule import Grid, Schedule
from latentdiff.sampling.spacings import SPACINGS

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COUNTS = [7, 20, 25, 30]


def schedule(**changes: Any) -> Schedule:
    return Schedule(ScheduleConfig(**(SD | {"steps_offset": 0} | changes)))


def levels(spacing: str, count: int, **changes: Any) -> Grid:
    return schedule(timestep_spacing=spacing, **changes).grid(count, clean=True)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "heun")])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("count", [1, 2, *COUNTS])
def test_every_step_reaches_the_next_marginal(name: str, spacing: str, count: int) -> None:
    """Where x = a * x0 + s * noise and x0 is known, the next must be a' * x0 + s' * noise', whatever N and T."""
    grid = levels(spacing, count)
    c_base, c_latent, *c_x0, c_noise, _ = SAMPLERS[name].table(grid).unbind(1)
    assert not c_base.any()
    signal = c_latent * grid.alphas[:-1] + sum(c_x0)
    variance = (c_latent * grid.sigmas[:-1]).square() + c_noise.square()
    assert torch.allclose(signal, grid.alphas[1:], atol=1e-12)
    assert torch.allclose(variance, grid.sigmas[1:].square(), atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", COUNTS)
def test_ddim_reaches_the_next_marginal_for_any_eta_and_for_flow(eta: float, count: int) -> None:
    for grid in (levels("leading", count), schedule(prediction_type="flow").grid(count, "trailing")):
        _, c_latent, c_x0, *_, c_noise, _ = ddim_table(grid, eta).unbind(1)
        assert torch.allclose(c_latent * grid.alphas[:-1] + c_x0, grid.alphas[1:], atol=1e-12)
        variance = (c_latent * grid.sigmas[:-1]).square() + c_noise.square()
        assert torch.allclose(variance, grid.sigmas[1:].square(), atol=1e-12)


def test_ddim_eta_is_equation_16() -> None:
    grid = levels("leading", 20)
    a, a_next = grid.alphas[:-1].square(), grid.alphas[1:].square()
    expected = 0.7 * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()
    assert torch.allclose(ddim_table(grid, 0.7)[:, COLUMNS.index("noise")], expected, atol=1e-12)


def test_lcm_reaches_the_next_marginal_except_for_its_boundary_weights() -> None:
    grid = schedule().grid(4, "lcm", clean=True)
    _, c_latent, c_x0, *_, c_noise, _ = SAMPLERS["lcm"].table(grid).unbind(1)
    assert torch.allclose(c_latent * grid.alphas[:-1] + c_x0, grid.alphas[1:], atol=1e-5)
    assert torch.equal(c_noise, grid.sigmas[1:])


def gaussian_grid(count: int) -> Grid:
    """Uniform steps in lambda = log(alpha / sigma) from -3 to 2."""
    ratio = torch.linspace(3, -2, count + 1, dtype=torch.float64).exp()
    alphas = (1 + ratio.square()).rsqrt()
    return Grid(torch.arange(count, dtype=torch.float64).flip(0), alphas, alphas * ratio)


def as_plan(table: Callable[[Grid], Tensor], grid: Grid) -> Plan:
    rows = [Update(base, latent, tuple(x0), noise, bool(new)) for base, latent, *x0, noise, new in table(grid).tolist()]
    return Plan(grid.timesteps.tolist(), grid.alphas.tolist(), grid.sigmas.tolist(), rows)


def twice(grid: Grid) -> Grid:
    """Every level twice, except the first and the last, as Heun's method visits them."""
    chosen = [0, *(k for k in range(1, len(grid.timesteps)) for _ in range(2))]
    ends = [*chosen, len(grid.timesteps)]
    return Grid(grid.timesteps[chosen], grid.alphas[ends], grid.sigmas[ends])


def error_on_gaussian_data(table: Callable[[Grid], Tensor], count: int, mean: float = 0.4, std: float = 0.3) -> float:
    """Distance from the exact solution of the probability flow, whose score is known for normal data."""
    grid = gaussian_grid(count)
    x = torch.tensor([1.3], dtype=torch.float64)
    spread = (grid.alphas.square() * std**2 + grid.sigmas.square()).sqrt()
    exact = grid.alphas[-1] * mean + spread[-1] / spread[0] * (x - grid.alphas[0] * mean)

    def x0(latents: Tensor, levels: Levels) -> Tensor:
        a, s = levels.alphas[0], levels.sigmas[0]
        return mean + a * std**2 / (a**2 * std**2 + s**2) * (latents - a * mean)

    run = as_plan(table, twice(grid) if table is heun_table else grid)
    (found,), _ = sample(x0, [SamplerState(run, x, torch.Generator())])
    return (found.latents - exact).abs().item()


@pytest.mark.parametrize(("table", "order"), [(ddim_table, 1), (dpmpp_2m_table, 2), (heun_table, 2)])
def test_order_of_convergence(table: Callable[[Grid], Tensor], order: int) -> None:
    errors = [error_on_gaussian_data(table, count) for count in (40, 80, 160, 320)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), slopes


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde"])
def test_noisy_samplers_reach_known_data(name: str) -> None:
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
        for i, (_, c_latent, c_x0, c_prev, _, _, c_noise, _) in enumerate(SAMPLERS[name].table(grid).tolist()):
            x0 = gain[i] * x
            x, x0_prev = c_latent * x + c_x0 * x0 + c_prev * x0_prev, x0
            x[i + 1] += c_noise
        distances.append(abs(x.norm().item() / spread2[-1].sqrt().item() - 1))
    assert distances[1] < distances[0] / 2 and distances[1] < 0.02


def model(x: Tensor, timestep: float) -> Tensor:
    """A substitute for a network with a bounded, smooth output."""
    return torch.tanh(0.7 * x + math.sin(timestep)) * 0.8


def predicts_x0(s: Schedule) -> Denoiser:
    """`model` as a network of the schedule's prediction type."""

    def network(x: Tensor, timesteps: Tensor, _: Conditioning) -> Tensor:
        return torch.stack([model(row, float(t)) for row, t in zip(x, timesteps, strict=True)])

    return partial(NetworkDenoiser(network, s, torch.float64), conditioning=Conditioning(torch.zeros(1, 1, 1)))


def ours_step_by_step(name: str, s: Schedule, timesteps: Tensor, start: Tensor, noises: list[Tensor]) -> list[Tensor]:
    grid = s.grid_at(timesteps, clean=True)
    seen: list[Tensor] = []
    monkeypatch = pytest.MonkeyPatch()
    queue = iter(noises)
    monkeypatch.setattr("latentdiff.sampling.loop.draw_noise", lambda *_: next(queue).double()[None])
    state = SamplerState(as_plan(SAMPLERS[name].table, grid), start.double(), torch.Generator())
    sample(predicts_x0(s), [state], lambda info: seen.append(info.latents[0].float()))
    monkeypatch.undo()
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
    """The noise that both packages use, in order."""
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
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a - b).abs().max() < 2e-4, f"step {number}"


PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [20, 25])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_and_ddpm_equal_diffusers_where_n_divides_t(
    prediction: str, count: int, spacing: str, noises: list[Tensor]
) -> None:
    """For others diffusers steps to t - T // N, which is not the next timestep it visits; the marginals above hold."""
    s = schedule(prediction_type=prediction, timestep_spacing=spacing)
    common = SD | {"prediction_type": prediction, "clip_sample": False, "timestep_spacing": spacing}
    for name, scheduler in (
        ("ddim", diffusers.DDIMScheduler(**common, set_alpha_to_one=True)),
        ("ddpm", diffusers.DDPMScheduler(**common)),
    ):
        if (name, spacing) == ("ddpm", "trailing"):
            continue  # its last step adds noise to the finished picture
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
    (done,), _ = sample(predicts_x0(s), [SamplerState(run, torch.randn(2, 3), torch.Generator())])
    assert torch.isfinite(done.latents).all() and done.latents.abs().max() < 10


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "changes", [{}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {"prediction_type": "flow"}]
)
def test_plans_are_finite_for_every_number_of_steps_and_spacing(name: str, changes: dict[str, Any]) -> None:
    sigmas = {"karras", "exponential", "beta", "align_your_steps", "align_your_steps_xl"} if changes else set()
    spacings = [None] if name == "lcm" else [spacing for spacing in SPACINGS if spacing not in sigmas]
    for offset in (0, 1):
        s = schedule(num_train_timesteps=12, steps_offset=offset, **changes)
        for count in range(1, 13):
            for spacing in spacings:
                run = plan(s, name, count, spacing=spacing)
                values = [value for row in run.table for value in (row.base, row.latent, *row.x0, row.noise)]
                assert all(map(math.isfinite, values)), (spacing, count, offset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddmi", 20, 0.0), "sampler='ddmi' is unknown; did you mean"),
        (("x", 20, 0.0), "known: ddim, ddpm, dpmpp_2m"),
        (("ddim", 20, 1.5), "eta=1.5 must be from 0 to 1"),
        (("euler", 20, 0.5), "eta=0.5 is only used by sampler='ddim'"),
        (("lcm", 51, 0.0), "at most 50 with sampler 'lcm'"),
    ],
)
def test_plans_with_invalid_arguments_are_errors(arguments: tuple[str, int, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(schedule(), *arguments)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("count", [7, 20])
def test_heun_equals_diffusers_at_the_end_of_each_step(prediction: str, count: int) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(**SD, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(count)
    s = schedule(prediction_type=prediction, timestep_spacing="trailing")
    grid = twice(s.grid(count, clean=True))
    start = torch.randn(2, 3)
    x, theirs = start * math.sqrt(float(scheduler.sigmas[0]) ** 2 + 1), []
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
        theirs.append(x / math.sqrt(float(scheduler.sigmas[k + 1]) ** 2 + 1))
    seen: list[Tensor] = []
    state = SamplerState(as_plan(heun_table, grid), start.double(), torch.Generator())
    sample(predicts_x0(s), [state], lambda info: seen.append(info.latents[0].float()))
    assert len(seen) == len(theirs) == 2 * count - 1
    for ours, wanted in zip(seen[1::2], theirs[1::2], strict=False):
        assert (ours - wanted).abs().max() < 2e-4
    assert (seen[-1] - theirs[-1]).abs().max() < 2e-4


def states(*names: str, shape: tuple[int, ...] = (2, 3), count: int = 4) -> list[SamplerState]:
    return [
        SamplerState(plan(schedule(), name, count + k), torch.randn(shape), torch.Generator().manual_seed(k))
        for k, name in enumerate(names)
    ]


def test_states_of_different_plans_step_together_as_each_does_alone() -> None:
    denoiser, together = predicts_x0(schedule()), states("ddim", "dpmpp_2m_sde", "heun", "lcm")
    generators = [state.generator.get_state() for state in together]
    alone = []
    for state, generator in zip(together, generators, strict=True):
        (done,), _ = sample(denoiser, [state])
        state.generator.set_state(generator)
        alone.append(done.latents)
    finished: dict[int, Tensor] = {}
    left = dict(enumerate(together))
    while left:
        stepped, x0 = step(denoiser, list(left.values()))
        assert x0.shape == (len(left), 2, 3)
        left = dict(zip(left, stepped, strict=True))
        finished |= {k: state.latents for k, state in left.items() if state.finished}
        left = {k: state for k, state in left.items() if not state.finished}
    for k, wanted in enumerate(alone):
        assert torch.allclose(finished[k], wanted, atol=1e-6)


def test_a_plan_can_start_in_the_middle_at_its_own_noise_level() -> None:
    run, x0, noise = plan(schedule(), "ddim", 10), torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(run.noisy(x0, noise, 10), run.alphas[10] * x0 + run.sigmas[10] * noise)
    noisy = run.noisy(x0, noise, 4)
    state = SamplerState(run, noisy, torch.Generator(), position=4)
    (done,), _ = sample(lambda latents, _: x0.expand_as(latents), [state])
    wanted = run.alphas[10] * x0 + run.sigmas[10] * noise
    assert torch.allclose(
        done.latents, wanted, atol=1e-5
    )  # a perfect prediction keeps the same noise, at a lower level


def test_rows_that_cannot_share_a_batch_are_named() -> None:
    denoiser = predicts_x0(schedule())
    with pytest.raises(InputError, match=r"shapes \[\(2, 3\), \(2, 4\)\] cannot share a batch"):
        step(denoiser, [*states("ddim"), *states("ddim", shape=(2, 4))])
    (done,), _ = sample(denoiser, states("ddim"))
    with pytest.raises(InputError, match="at the end of its plan"):
        step(denoiser, [done])
    with pytest.raises(InputError, match="do not end at the same step"):
        sample(denoiser, states("ddim", "ddim"))


def test_a_callback_may_stop_sampling_and_must_return_a_bool_or_none() -> None:
    denoiser, seen = predicts_x0(schedule()), []

    def stop_at_two(info: StepInfo) -> bool:
        seen.append((info.step, info.steps, info.timestep))
        return info.step == 2

    (stopped,), x0 = sample(denoiser, states("ddim"), stop_at_two)
    assert [s[:2] for s in seen] == [(1, 4), (2, 4)] and seen[0][2] > seen[1][2]
    assert stopped.position == 2 and torch.equal(x0[0], stopped.history[0])
    with pytest.raises(InputError, match="the callback returned 'yes'; return True to stop"):
        sample(denoiser, states("ddim"), lambda info: "yes")  # type: ignore[arg-type, return-value]
