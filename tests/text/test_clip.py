"""The text encoder against transformers': outputs of small random models, and keys of full-size ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from latentdiff.checkpoints.folder import write_text_encoder
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.errors import CheckpointError
from latentdiff.text.clip import CLIPTextModel, current_key

WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 60}
LENGTH = {"max_position_embeddings": 10, "bos_token_id": 0, "pad_token_id": 1}
SMALL: dict[str, dict[str, Any]] = {
    "sd1": WIDTH | LENGTH | {"num_hidden_layers": 3, "hidden_act": "quick_gelu", "eos_token_id": 2},
    "sd2": WIDTH | LENGTH | {"num_hidden_layers": 2, "hidden_act": "gelu", "eos_token_id": 59},
    "sdxl": WIDTH | LENGTH | {"num_hidden_layers": 3, "hidden_act": "gelu", "eos_token_id": 2, "projection_dim": 24},
    "sdxl, newer": WIDTH | LENGTH | {"num_hidden_layers": 1, "hidden_act": "gelu", "eos_token_id": 58},
}
FULL: dict[str, dict[str, Any]] = {
    "L": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu", "projection_dim": 768,
    },
    "H": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
        "hidden_act": "gelu", "projection_dim": 512,
    },
    "bigG, of SDXL": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "hidden_act": "gelu", "projection_dim": 1280,
    },
}  # fmt: skip
IDS = torch.tensor([[0, 7, 30, 59, 59, 59, 59, 59, 59, 59], [0, 5, 9, 41, 33, 58, 59, 1, 1, 1]])


def theirs(kind: str, values: dict[str, Any]) -> Any:
    """transformers' model, with the projection where SDXL has it."""
    name = "CLIPTextModelWithProjection" if "sdxl" in kind.lower() else "CLIPTextModel"
    config = transformers.CLIPTextConfig(**values, architectures=[name])
    return getattr(transformers, name)(config).eval()


def random(kind: str) -> Any:
    """With weights so large that every layer has an effect."""
    model = theirs(kind, SMALL[kind])
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def ours(model: Any) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig.read(model.config.to_dict(), "config.json")).eval()


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_output_equals_transformers(kind: str) -> None:
    reference = random(kind)
    model = ours(reference)
    model.load_state_dict(reference.state_dict())
    found, wanted = model(IDS), reference(IDS, output_hidden_states=True)
    assert wanted.last_hidden_state.std() > 0.1
    assert (found.last_hidden_state - wanted.last_hidden_state).abs().max() < 1e-5
    for mine, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert (mine - other).abs().max() < 1e-5
    if "sdxl" in kind:
        assert (found.text_embeds - wanted.text_embeds).abs().max() < 1e-5
    else:
        assert found.text_embeds is None
        assert (found.pooler_output - wanted.pooler_output).abs().max() < 1e-5


def test_the_end_token_is_the_highest_id_in_old_configs() -> None:
    for eos, places in ((2, [3, 6]), (58, [0, 5]), (59, [3, 6]), (1, [0, 7])):
        model = CLIPTextModel(CLIPTextConfig.model_validate(SMALL["sd1"] | {"eos_token_id": eos}))
        nn.init.normal_(model.text_model.embeddings.position_embedding.weight)
        found = model(IDS)
        assert torch.equal(found.pooler_output, found.last_hidden_state[torch.arange(2), places])


def test_attention_is_causal() -> None:
    model = ours(reference := random("sd1"))
    model.load_state_dict(reference.state_dict())
    other = IDS.clone()
    other[:, 4:] = 3
    found, changed = (model(ids).last_hidden_state for ids in (IDS, other))
    assert torch.allclose(found[:, :4], changed[:, :4], atol=1e-6) and not torch.allclose(found[:, 4], changed[:, 4])


@pytest.mark.parametrize("size", FULL)
def test_full_size_keys_and_shapes_equal_transformers(size: str) -> None:
    with torch.device("meta"):
        reference = theirs(size, FULL[size])
        model = ours(reference)
    expected = {current_key(key): value for key, value in shapes(reference.state_dict()).items()}
    assert shapes(model.state_dict()) == expected
    assert ("text_projection.weight" in expected) == ("SDXL" in size)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_files_of_every_transformers_version_load(kind: str) -> None:
    """With `text_model.` and position ids, as in 2022; with `text_model.` only; with neither, as in transformers 5."""
    reference = random(kind)
    model = ours(reference)
    state = {current_key(key) or "": value for key, value in reference.state_dict().items()}
    old = state | {"text_model.embeddings.position_ids": torch.arange(10)[None]}
    for file in (old, state, {key.removeprefix("text_model."): value for key, value in state.items()}):
        for p in model.parameters():
            nn.init.zeros_(p)
        model.load_state_dict(file, strict=True)
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    nn.ModuleList([model]).load_state_dict({f"0.{key}": value for key, value in old.items()}, strict=True)
    with pytest.raises(RuntimeError, match="surprise"):
        model.load_state_dict(state | {"surprise": torch.zeros(1)})


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_transformers_opens_what_is_written(kind: str, tmp_path: Path) -> None:
    reference = random(kind)
    model = ours(reference)
    model.load_state_dict(reference.state_dict())
    write_text_encoder(model, tmp_path)
    again, report = type(reference).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(IDS).last_hidden_state, reference(IDS).last_hidden_state)
    kept = ("hidden_act", "eos_token_id", "bos_token_id", "pad_token_id", "projection_dim", "layer_norm_eps")
    assert all(getattr(again.config, key) == getattr(reference.config, key) for key in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"model_type": "t5"}, "model_type='t5' is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 5}, "must be divisible by 5 heads"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
    ],
)
def test_configs_with_unsupported_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        CLIPTextConfig.read(SMALL["sd1"] | change, "text_encoder/config.json")
    assert "\n" not in str(caught.value)


def test_keys_without_an_effect_are_ignored() -> None:
    config = CLIPTextConfig.read(SMALL["sd1"] | {"torch_dtype": "float16", "dropout": 0.0}, "config.json")
    assert config == CLIPTextConfig.model_validate(SMALL["sd1"])
