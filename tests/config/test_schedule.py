"""Scheduler files of diffusers: every class and key is used, or rejected by name."""

import inspect
import warnings
from typing import Any

import diffusers
import pytest
import torch

from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import CLASSES, LEVELS_ONLY, ScheduleConfig
from latentdiff.errors import CheckpointError, InputError
from latentdiff.sampling.samplers import SAMPLERS, plan
from latentdiff.sampling.schedule import Schedule, alphas_cumprod

NAMES = [*CLASSES, *LEVELS_ONLY]


def read(name: str, **keys: Any) -> ScheduleConfig:
    return ScheduleConfig.read({"_class_name": name} | keys, "scheduler/scheduler_config.json")


@pytest.mark.parametrize("name", [*NAMES, "UNet2DConditionModel", "AutoencoderKL"])
def test_every_key_of_the_class_is_known(name: str) -> None:
    theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
    config = {"UNet2DConditionModel": UNetConfig, "AutoencoderKL": VAEConfig}.get(name, ScheduleConfig)
    missing = theirs.keys() - {"self", *config.model_fields, *config._only(), *config._without_effect()}
    assert not missing


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (ScheduleConfig, {"_class_name": "DDIMScheduler", "beta_strat": 0.1}),
        (UNetConfig, {"layer_per_block": 3}),
        (VAEConfig, {"scaling_facter": 0.2}),
    ],
)
def test_unknown_keys_are_named(config: Any, keys: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"model/config.json: unknown keys have no effect: '{list(keys)[-1]}'"):
        config.read(keys | {"_diffusers_version": "0.30.0"}, "model/config.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.read({"_name_or_path": "x"}, "model/config.json")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "FlowMatchEulerDiscreteScheduler"])
def test_missing_keys_have_the_defaults_of_their_class(name: str) -> None:
    theirs = getattr(diffusers, name)()
    ours = read(name)
    assert (alphas_cumprod(ours) - theirs.alphas_cumprod.double()).abs().max() < 1e-5
    for key in ("timestep_spacing", "steps_offset", "clip_sample", "prediction_type", "set_alpha_to_one"):
        if key in theirs.config:
            assert getattr(ours, key) == theirs.config[key], key


@pytest.mark.parametrize("name", CLASSES)
def test_a_file_names_its_sampler_and_is_written_for_the_same_class(name: str) -> None:
    config = read(name, clip_sample=False)
    assert config.sampler in SAMPLERS and not config.unsupported
    written = config.write()
    assert written["_class_name"] == ("DDIMScheduler" if name == "PNDMScheduler" else name)
    assert ScheduleConfig.read(written, "again") == config
    if name != "FlowMatchEulerDiscreteScheduler":
        theirs = getattr(diffusers, written["_class_name"]).from_config(written)
        assert (theirs.alphas_cumprod.double() - alphas_cumprod(config)).abs().max() < 1e-5


def test_flow_is_read_by_its_class() -> None:
    config = read("FlowMatchEulerDiscreteScheduler", shift=3.0)
    assert (config.prediction_type, config.shift, config.sampler) == ("flow", 3.0, "euler")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert (Schedule(config).sigmas.flip(0) - theirs.sigmas.double()).abs().max() < 1e-6


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_sigma_spacings_are_read_and_written(spacing: str) -> None:
    config = read("EulerDiscreteScheduler", **{f"use_{spacing}_sigmas": True})
    assert config.timestep_spacing == spacing
    again = diffusers.EulerDiscreteScheduler.from_config(config.write())
    again.set_timesteps(7)
    grid = Schedule(config).grid(7, clean=True)
    assert torch.allclose((grid.sigmas / grid.alphas).float(), again.sigmas, rtol=3e-4)


def test_the_last_level_is_that_of_the_file() -> None:
    for final, last in (("zero", 0.0), ("sigma_min", float(Schedule(read("EulerDiscreteScheduler")).sigmas[0]))):
        run = plan(Schedule(read("EulerDiscreteScheduler", final_sigmas_type=final)), "euler", 5)
        assert run.sigmas[-1] == pytest.approx(last)


def test_trained_betas_are_the_levels() -> None:
    betas = [0.1, 0.2, 0.3]
    config = read("DDIMScheduler", trained_betas=betas, num_train_timesteps=3)
    assert alphas_cumprod(config).tolist() == pytest.approx([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    with pytest.raises(CheckpointError, match="trained_betas"):
        read("DDIMScheduler", trained_betas=betas)


@pytest.mark.parametrize(
    ("name", "keys", "sampler", "reason"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", ""),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp_2m", "solver_order=3 is not implemented"),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "dpmpp_2m", "solver_type='heun' is not implemented"),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, "ddpm", "variance_type='fixed_large' is not implemented"),
        ("UniPCMultistepScheduler", {}, "", "UniPCMultistepScheduler is not implemented as a sampler"),
    ],
)
def test_an_unsupported_sampler_must_be_replaced_by_the_user(
    name: str, keys: dict[str, Any], sampler: str, reason: str
) -> None:
    config = read(name, **keys)
    assert (config.sampler, config.unsupported) == (sampler, reason)
    if reason:
        with pytest.raises(InputError, match="use for example sampler="):
            plan(Schedule(config), "", 5)
        assert len(plan(Schedule(config), "dpmpp_2m", 5)) == 5


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("EDMEulerScheduler", {}, "_class_name='EDMEulerScheduler' is not supported"),
        ("EulerDiscretScheduler", {}, "did you mean 'EulerDiscreteScheduler'"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous' is not supported"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "exclude each other"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        ("DDIMScheduler", {"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ("DDIMScheduler", {"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ("DDIMScheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps=1000000000"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0}, "shift=0"),
        ("DDIMScheduler", {"beta_start": float("nan")}, "beta_start=nan"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": "no"}, "use_karras_sigmas='no' must be true or false"),
    ],
)
def test_unsupported_keys_are_refused_by_name(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(name, **keys)


def test_a_dictionary_without_a_class_has_stable_diffusions_values() -> None:
    assert ScheduleConfig.read({}, "single file") == ScheduleConfig()
    assert GenerationConfig().sampler == "ddim"
