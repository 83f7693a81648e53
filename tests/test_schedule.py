"""Noise schedules against closed forms and diffusers'."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

from latentdiff.config.model import ScheduleConfig
from latentdiff.errors import InputError
from latentdiff.schedule import Schedule, alphas_cumprod, betas, flow_sigmas, rescale_zero_terminal_snr, whole_timesteps

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


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_noise() -> None:
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
    """Up to one case: of leading's 1,000 steps with an offset of 1, diffusers' first lies outside its own table."""
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(count)
    assert whole_timesteps(count, 1000, spacing, offset).tolist() == theirs.timesteps.clamp(max=999).tolist()


@pytest.mark.parametrize("count", [1, 2, 4, 8, 13])
def test_lcm_timesteps_equal_diffusers(count: int) -> None:
    theirs = diffusers.LCMScheduler()
    theirs.set_timesteps(count)
    assert whole_timesteps(count, 1000, "lcm", 0).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("count", [5, 20, 33])
def test_karras_levels_equal_diffusers(count: int) -> None:
    theirs = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True
    )
    theirs.set_timesteps(count)
    grid = schedule().grid(count, "karras", clean=True)
    assert torch.allclose((grid.sigmas / grid.alphas).float(), theirs.sigmas, rtol=1e-4)
    assert torch.allclose(grid.timesteps, theirs.timesteps.double(), atol=0.2)


def test_karras_needs_signal() -> None:
    with pytest.raises(InputError, match="use trailing"):
        schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction").grid(10, "karras")


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_steps_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"num_inference_steps={count} \(--steps\) must be from 1 to 1000"):
        schedule().grid(count)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
def test_x0_is_found_again_from_the_target(prediction: str) -> None:
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
