"""YAML files give a validated config or a one-line error."""

import re
from pathlib import Path
from typing import Any

import pytest

from latentdiff.config.base import load_yaml, validate
from latentdiff.config.train import UNetTrainConfig, VAETrainConfig, train_config
from latentdiff.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "emoji").glob("*.yaml"))
VAE = Path(__file__).parents[2] / "configs" / "emoji" / "vae.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_of_the_repository_is_valid(path: Path) -> None:
    assert load_yaml(train_config, path).optim.max_steps > 0


def test_overrides_reach_into_groups() -> None:
    config = load_yaml(train_config, VAE, ["optim.max_steps=7", "model.block_out_channels=[8, 16]", "kl_weight=1e-3"])
    assert isinstance(config, VAETrainConfig)
    assert (config.optim.max_steps, config.model.block_out_channels, config.kl_weight) == (7, (8, 16), 1e-3)


def test_only_true_and_false_are_booleans() -> None:
    text = VAE.with_name("text_encoder.yaml")  # the prefix of captions is off
    config = load_yaml(train_config, text, ["run.mixed_precision=no", "data.prefix=off", "data.keep={style: [no, on]}"])
    assert (config.run.mixed_precision, config.data.prefix, config.data.keep) == ("no", "off", {"style": ("no", "on")})
    assert not load_yaml(train_config, VAE, ["data.buckets=false"]).data.buckets


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "u.yaml"
    path.write_text("{task: unet, vae: v, text_encoder: t, data: {train: a, held_out: b}, run: {output: o}, model: {}}")
    config = load_yaml(train_config, path, ["schedule={}"])
    assert isinstance(config, UNetTrainConfig)
    assert config.model.block_out_channels == (320, 640, 1280, 1280)
    assert config.schedule.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1", r"unknown key 'optim.learning_rat'; did you mean 'learning_rate'\?"),
        ("optim.max_steps=0", r"yaml: optim\.max_steps=0: Input should be greater than 0"),
        ("optim.max_steps=many", "yaml: optim.max_steps='many'"),
        ("task=vea", "task='vea' must be one of finetune, text_encoder, unet, vae; set"),
        ("optim.max_steps", "has no '='"),
        ("kl_weight.x=1", "is a value, not a group"),
        ("model.norm_num_groups=7", "norm_num_groups"),
        ("optim.max_steps=[", "the value is not YAML"),
    ],
)
def test_mistakes_name_the_key_and_the_rule(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_yaml(train_config, VAE, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("a: [", "is not YAML"),
        ("- 1", "contains list"),
        ("", "contains NoneType"),
        ("{}", "task=None must be one of finetune"),
    ],
)
def test_files_that_are_not_configs(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_yaml(train_config, path)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{task: vae, data: {train: a, held_out: b}, model: {}}")
    with pytest.raises(InputError, match="'run' is missing"):
        load_yaml(train_config, path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": {"learning_rate": float("inf")}}, "learning_rate=inf"),
        ({"optim": {"weight_decay": float("nan")}}, "weight_decay=nan"),
        ({"data": {"train": "x", "background": "blak"}}, "background='blak' is not a colour; try 'black'"),
        ({"method": "full", "text_encoder": True}, "applies to lora and dora, not to full; remove it"),
        ({"method": "full", "rank": 8}, "rank=8 applies to lora and dora, not to full; remove it"),
        ({"init_word": "dog"}, "init_word=dog applies to textual_inversion, not to lora; remove it"),
        ({"method": "textual_inversion", "prior": {"prompt": "a cat"}}, "prior does not apply to textual_inversion"),
    ],
)
def test_invalid_combinations_of_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    raw = {"task": "finetune", "data": {"train": "x"}, "run": {"output": "y"}} | settings
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        validate(train_config, raw, "x.yaml")
    assert len(str(caught.value)) < 150
