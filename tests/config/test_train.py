"""Settings of a training config that have no effect are errors that name them."""

import re
from pathlib import Path
from typing import Any

import pytest

from latentdiff.config.base import load_yaml
from latentdiff.config.train import train_config
from latentdiff.errors import InputError

EMOJI = Path(__file__).parents[2] / "configs" / "emoji"


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        ("vae", ["data.prefix=sks"], "data.prefix='sks' has no effect in task vae, which reads no captions; remove it"),
        ("vae", ["data.tag_dropout=0.1"], "data.tag_dropout=0.1 has no effect in task vae"),
        ("vae", ["data.shuffle_captions=true"], "data.shuffle_captions=True has no effect in task vae"),
        ("vae", ["data.caption_template=a {name}"], "data.caption_template='a {name}' has no effect in task vae"),
        ("vae", ["caption_dropout=0.1"], "unknown key 'caption_dropout'"),
        ("vae", ["data.max_crop=0.3"], "data.max_crop=0.3 has no effect in task vae, which reads centre squares"),
        ("text_encoder", ["data.crop=random"], "data.crop='random' has no effect in task text_encoder, which reads"),
        (
            "unet",
            ["data.max_crop=0.3", "data.buckets=false"],
            "max_crop=0.3 has no effect with buckets: false; remove it",
        ),
        (
            "unet",
            ["optim.lr_schedule=constant", "optim.final_learning_rate=1.0e-5"],
            "optim: final_learning_rate=1e-05 has no effect with lr_schedule: constant; remove it",
        ),
        ("vae", ["adversarial_start=5"], "adversarial_start=5 has no effect without adversarial_weight; remove it"),
        (
            "vae",
            ["adversarial_start=30", "adversarial_weight=0.1", "optim.max_steps=30"],
            "adversarial_start=30 must be less than optim.max_steps=30; lower it",
        ),
        (
            "vae",
            ["gradient_exponent=0.5", "gradient_weight=0"],
            "gradient_exponent=0.5 has no effect with gradient_weight",
        ),
        ("vae_decoder", ["kl_weight=0.1"], "kl_weight=0.1 has no effect with train_encoder: false; remove it"),
        ("unet", ["schedule.shift=3"], "schedule.shift=3.0 has no effect without prediction_type: flow; remove it"),
        ("unet", ["schedule.clip_sample_range=2"], "clip_sample_range=2.0 has no effect without clip_sample: true"),
        ("unet", ["schedule.sample_max_value=2"], "sample_max_value=2.0 has no effect without thresholding: true"),
    ],
)
def test_a_setting_without_an_effect_is_named(file: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_yaml(train_config, EMOJI / f"{file}.yaml", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("text_encoder", ["data.prefix=sks", "data.tag_dropout=0.1"]),
        ("vae", ["adversarial_weight=0.1", "adversarial_start=5"]),
        ("unet", ["schedule.prediction_type=flow", "schedule.shift=3", "schedule.rescale_betas_zero_snr=false"]),
        ("unet", ["optim.final_learning_rate=1.0e-5", "data.max_crop=0.3"]),
    ],
)
def test_the_same_settings_are_accepted_where_they_apply(file: str, overrides: list[str]) -> None:
    load_yaml(train_config, EMOJI / f"{file}.yaml", overrides)


def test_sampling_settings_of_a_fine_tune_without_samples_are_named() -> None:
    config: dict[str, Any] = {"task": "finetune", "data": {"train": "x"}, "run": {"output": "y"}, "sample_steps": 50}
    with pytest.raises(ValueError, match="sample_steps=50 has no effect without sample_prompts, metrics or prior"):
        train_config.validate_python(config)
    assert train_config.validate_python(config | {"sample_prompts": ["a cat"]}).sample_steps == 50
