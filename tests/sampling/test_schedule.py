"""Noise schedules against closed forms and diffusers'."""

from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from diffusers.schedulers import AysSchedules
from diffusers.training_utils import compute_snr

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.errors import InputError
from latentdiff.sampling.schedule import Schedule, alphas_cumprod, betas, flow_sigmas, rescale_zero_terminal_snr
from latentdiff.sampling.spacings import SPACINGS, TIMESTEP_GRIDS, _beta_quantiles, timestep_grid

BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def schedule(**changes: Any) -> Schedule:
    return Schedule(ScheduleConfig(**changes))


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("rescaled", [False, True])
def test_alphas_equal_diffusers(name: str, rescaled: bool) -> None:
    config = ScheduleConfig(beta_schedule=name, rescale_betas_zero_snr=rescaled, prediction_type="v_prediction")
    theirs = diffusers.DDIMScheduler(
        beta_schedule=name, beta_start=config.beta_start, beta_end=config.beta_end, rescale_betas_zero_snr=rescaled
    )
    assert alphas_cumprod(config).dtype == torch.float64
    assert (alphas_cumprod(config) - theirs.alphas_cumprod).abs().max() < 2e-5


def test_linear_cumulative_product_is_exact() -> None:
    found = alphas_cumprod(ScheduleConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))
    expected = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert np.abs(found.numpy() - expected).max() < 1e-14


def test_cosine_follows_its_formula_until_the_cap() -> None:
    found = alphas_cumprod(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    expected = f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert (found - expected)[:-1].abs().max() < 1e-12
    assert betas(ScheduleConfig(beta_schedule="squaredcos_cap_v2")).max() == 0.999


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_pure_noise() -> None:
    before = alphas_cumprod(ScheduleConfig())
    after = rescale_zero_terminal_snr(before)
    assert after[-1] == 0
    assert after[0].item() == pytest.approx(before[0].item(), rel=1e-12)
    assert (after.diff() < 0).all()


def test_zero_terminal_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(InputError, match="use v_prediction or sample"):
        schedule(rescale_betas_zero_snr=True, prediction_type="epsilon")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 4, 7, 20, 30, 50, 333, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_equal_diffusers(spacing: str, count: int, offset: int) -> None:
    """Except `leading` if N does not divide T, where diffusers steps by T // N, and single steps near x0."""
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(count)
    wanted = theirs.timesteps.tolist()
    if spacing in ("linspace", "leading") and count == 1:
        wanted = [999]  # diffusers starts at a level without noise
    if spacing == "leading" and count == 1000:
        wanted = list(range(999, -1, -1))  # with an offset of 1 diffusers' first lies outside its own table
    if spacing == "leading" and 1000 % count:
        assert timestep_grid(count, 1000, spacing, offset)[0] >= wanted[0]
        return
    assert timestep_grid(count, 1000, spacing, offset).tolist() == wanted


@pytest.mark.parametrize("spacing", [name for name in TIMESTEP_GRIDS if name != "lcm"])
@pytest.mark.parametrize("offset", [0, 1])
def test_every_grid_of_timesteps_starts_at_the_top_and_visits_each_level_once(spacing: str, offset: int) -> None:
    for total in (1000, 37):
        for count in range(1, total + 1):
            steps = timestep_grid(count, total, spacing, offset)
            assert len(steps) == count and (steps.diff() < 0).all() and steps[-1] >= 0
            gap = total / count
            top = total - 1 if spacing != "leading" or count == 1 else min(total - gap + offset, total - 1)
            assert top - 1 <= steps[0] <= total - 1, (spacing, count)
            assert steps[-1] <= max(gap, offset), (spacing, count)


@pytest.mark.parametrize("total", [1, 2, 7, 30, 49, 51, 75, 1000])
def test_the_grid_of_lcm_starts_at_the_top_for_every_number_of_timesteps(total: int) -> None:
    for count in range(1, min(total, 50) + 1):
        steps = timestep_grid(count, total, "lcm", 0)
        assert steps[0] == total - 1 and (steps.diff() < 0).all() and steps[-1] >= 0 and len(steps) == count
    with pytest.raises(InputError, match=f"must be at most {min(total, 50)} with sampler 'lcm'"):
        timestep_grid(min(total, 50) + 1, total, "lcm", 0)


@pytest.mark.parametrize("total", [2, 7, 100, 1000])
@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_grid_of_levels_descends_from_the_noisiest(spacing: str, betas: str, total: int) -> None:
    """Also for schedules with more noise than Stable Diffusion's (cosine), and with less (fewer timesteps)."""
    s = schedule(steps_offset=0, beta_schedule=betas, num_train_timesteps=total)
    for count in {1, 2, 3, 10, 20, 50, 333, total} & {*range(1, total + 1)}:
        grid = s.grid(count, spacing, clean=True)
        ratios = grid.sigmas / grid.alphas
        assert len(grid.timesteps) == count and (ratios.diff() < 0).all() and ratios[-1] == 0
        assert ratios[0] >= 0.9 * s.sigmas[-1] / s.alphas[-1] or (spacing == "leading" and count > 1)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 13])
def test_lcm_timesteps_equal_diffusers(count: int) -> None:
    theirs = diffusers.LCMScheduler()
    theirs.set_timesteps(count)
    assert timestep_grid(count, 1000, "lcm", 0).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("count", [1, 5, 20, 33])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_spacings_of_sigma_equal_diffusers(spacing: str, count: int) -> None:
    theirs = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **{f"use_{spacing}_sigmas": True}
    )
    theirs.set_timesteps(count)
    grid = schedule().grid(count, spacing, clean=True)
    if count == 1:  # diffusers takes its single timestep from linspace, which is 0 there
        assert grid.timesteps.tolist() == [999]
        return
    assert torch.allclose((grid.sigmas / grid.alphas).float(), theirs.sigmas, rtol=3e-4)
    assert torch.allclose(grid.timesteps, theirs.timesteps.double(), atol=0.3)


def test_quantiles_of_the_beta_distribution_equal_scipy() -> None:
    probabilities = np.linspace(0, 1, 101)
    assert np.abs(_beta_quantiles(probabilities) - scipy.stats.beta.ppf(probabilities, 0.6, 0.6)).max() < 2e-5


def test_aligned_steps_are_the_published_ones() -> None:
    names = {"align_your_steps": "StableDiffusionSigmas", "align_your_steps_xl": "StableDiffusionXLSigmas"}
    for spacing, name in names.items():
        grid = schedule().grid(10, spacing, clean=True)
        published = torch.tensor(AysSchedules[name][:-1], dtype=torch.float64)
        assert torch.allclose((grid.sigmas / grid.alphas)[:-1], published, rtol=2e-2)


def test_karras_needs_signal() -> None:
    with pytest.raises(InputError, match="use spacing='trailing'"):
        schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction").grid(10, "karras")


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_steps_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"num_inference_steps={count} \(--steps\) must be from 1 to 1000"):
        schedule().grid(count)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
def test_x0_is_recovered_from_the_target(prediction: str) -> None:
    s = schedule(prediction_type=prediction)
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    timesteps = torch.tensor([0, 10, 400, 800, 998])
    noisy, target = s.add_noise(x0, noise, timesteps), s.training_target(x0, noise, timesteps)
    c_sample, c_output = s.x0_coefficients(s.alphas[timesteps], s.sigmas[timesteps])
    assert torch.allclose(c_sample[:, None] * noisy + c_output[:, None] * target, x0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_velocity_equal_diffusers(prediction: str) -> None:
    s = schedule(prediction_type=prediction)
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    x0, noise, timesteps = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.tensor([0, 300, 600, 999])
    assert torch.allclose(s.add_noise(x0, noise, timesteps), theirs.add_noise(x0, noise, timesteps), atol=1e-5)
    expected = noise if prediction == "epsilon" else theirs.get_velocity(x0, noise, timesteps)
    assert torch.allclose(s.training_target(x0, noise, timesteps), expected, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
def test_min_snr_weight_is_the_clamped_weight_of_x0(prediction: str) -> None:
    """An error in the predicted quantity, turned into one in x0 and weighted by min(SNR, gamma), is the same loss."""
    s = schedule(prediction_type=prediction)
    timesteps = torch.tensor([1, 100, 500, 900])
    alphas, sigmas = s.alphas[timesteps], s.sigmas[timesteps]
    _, c_output = s.x0_coefficients(alphas, sigmas)
    expected = (alphas / sigmas).square().clamp(max=5) * c_output.square()
    assert torch.allclose(s.min_snr_weight(timesteps, 5.0).double(), expected, rtol=1e-4)


def test_snr_equals_diffusers() -> None:
    s = schedule()
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 500, 999])
    expected = compute_snr(theirs, timesteps).clamp(max=5) / compute_snr(theirs, timesteps)
    assert torch.allclose(s.min_snr_weight(timesteps, 5.0), expected, rtol=1e-3)


def test_flow_levels_and_shift() -> None:
    assert torch.allclose(flow_sigmas(4, 1.0), torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert torch.allclose(flow_sigmas(1000, 3.0).flip(0).float(), theirs.sigmas, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_timesteps": 100_000}, "leave .* of the signal at the last, less than 1e-08; use fewer timesteps"),
        ({"beta_end": 0.9, "num_train_timesteps": 1000}, "of the signal at the last"),
        (
            {"num_train_timesteps": 1, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            "num_train_timesteps of 2 or more",
        ),
    ],
)
def test_schedules_without_signal_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule(**changes)
