"""Each fine-tuning method trains its own weights and leaves the others unchanged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latentdiff.checkpoints.components import read_pipeline
from latentdiff.checkpoints.lora_reader import FILE
from latentdiff.checkpoints.textual_inversion import FILE as LEARNED
from latentdiff.config.train import train_config
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.training import loop
from latentdiff.training.frozen import weights_of
from latentdiff.training.train import train
from tests.small import small_unet_config


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(4):
        Image.effect_noise((16, 16), 20 + 20 * k).convert("RGB").save(folder / f"grey noise {k}.png")
    return {
        "task": "finetune", "base": str(model_folder),
        "data": {"train": str(folder), "resolution": 16, "batch_size": 4, "prefix": "<toy>"},
        "optim": {"learning_rate": 1e-2, "warmup_steps": 0, "max_steps": 4, "weight_decay": 0.0, "ema_decay": 0.5},
        "run": {"output": str(tmp_path / "run"), "mixed_precision": "no", "tracker": "none"},
    }  # fmt: skip


def trained(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task after training."""
    seen: list[Any] = []
    start = loop.Run.__init__

    def kept(self: Any, task: Any, *rest: Any) -> None:
        seen.append(task)
        start(self, task, *rest)

    monkeypatch.setattr(loop.Run, "__init__", kept)
    train(train_config.validate_python(config))
    return seen[0]


def test_inversion_changes_only_the_new_rows(
    config: dict[str, Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config |= {"method": "textual_inversion", "init_word": "apple", "vectors": 2}
    task = trained(config, monkeypatch)
    base = read_pipeline(model_folder, torch.float32)
    with weights_of(task.released):
        for part in ("denoiser", "vae"):
            pairs = zip(getattr(base, part).parameters(), getattr(task.parts, part).parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    state = {
        name.replace("token_embedding.table", "token_embedding"): p for name, p in task.parts.text.state_dict().items()
    }
    old = base.text.state_dict()
    new = {name for name in state if name not in old}
    assert [name.rsplit(".", 1)[1] for name in new] == ["learned"]
    assert all(torch.equal(state[name], value) for name, value in old.items())
    (learned,) = load_file(tmp_path / "run" / "model" / LEARNED).values()
    ids = base.text.tokenizers[0].encode("apple")
    initial = base.text.encoders[0].text_model.embeddings.token_embedding.weight[ids].mean(0)
    assert learned.shape == (2, 32) and (learned - initial).abs().min() > 0


@pytest.mark.parametrize("method", ["lora", "textual_inversion"])
def test_frozen_matrices_have_the_compute_precision_and_trained_weights_float32(
    method: str, config: dict[str, Any], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["run"]["mixed_precision"] = "bf16"
    config |= {"method": method, "sample_prompts": ["<toy>"], "sample_steps": 2}
    config |= {"init_word": "apple"} if method == "textual_inversion" else {}
    task = trained(config, monkeypatch)
    unet, base = task.parts.denoiser, read_pipeline(model_folder, torch.float32).denoiser
    state = {name.replace(".base_layer", ""): p for name, p in unet.named_parameters() if "lora_" not in name}
    assert state.keys() == dict(base.named_parameters()).keys()
    for name, expected in base.named_parameters():
        dtype = torch.bfloat16 if expected.ndim > 1 else torch.float32
        assert state[name].dtype == dtype and torch.equal(state[name], expected.to(dtype)), name
    trains = [p for p in task.module.parameters() if p.requires_grad]
    assert trains and {p.dtype for p in trains} == {torch.float32}
    assert {p.dtype for p in (*task.parts.vae.parameters(), *task.parts.text.parameters())} == {torch.float32}


def test_the_pairs_of_the_text_encoder_are_trained_if_requested(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(config | {"text_encoder": True}, monkeypatch)
    state = load_file(tmp_path / "run" / "model" / FILE)
    ups = [value for key, value in state.items() if key.startswith("text_encoder.") and "lora_B" in key]
    assert ups and all(value.abs().max() > 0 for value in ups)


def test_class_images_are_generated_once_and_used_equally_often(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config |= {"prior": {"prompt": "a red apple", "images": 9, "weight": 0.5}, "sample_steps": 2}
    task = trained(config, monkeypatch)
    (drawn,) = (tmp_path / "run" / "prior").iterdir()
    pictures = sorted(drawn.iterdir())
    assert [path.name for path in pictures] == [f"{k:05d}.png" for k in range(9)]
    items = [task.data[k, k] for k in range(len(task.data))]
    of_class = [item for item in items if item["caption"] == "a red apple"]
    assert len(of_class) == 9 and len(items) - 9 == 9
    assert {item["weight"].item() for item in of_class} == {0.5}
    assert {item["weight"].item() for item in items if item["caption"] != "a red apple"} == {1.0}
    before = [path.read_bytes() for path in pictures]
    pictures[3].unlink()
    config["run"]["output"] = str(tmp_path / "again")
    config["prior"]["folder"] = str(tmp_path / "run" / "prior")
    trained(config, monkeypatch)
    assert [path.read_bytes() for path in pictures] == before
    config["run"]["output"] = str(tmp_path / "other prompt")
    config["prior"]["prompt"] = "a cat face"
    trained(config, monkeypatch)
    assert [path.read_bytes() for path in pictures] == before
    others = [path for path in (tmp_path / "run" / "prior").glob("*/*.png") if path not in pictures]
    assert len(others) == 9 and not {path.read_bytes() for path in others} & set(before)


@pytest.mark.parametrize("settings", [{"noise_offset": 0.1}, {"huber_delta": 0.5}, {"min_snr_gamma": 5.0}])
def test_the_configurable_losses_follow_their_formulas(
    config: dict[str, Any], settings: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["run"]["log_every"] = 1
    trained(config | settings, monkeypatch)
    assert (tmp_path / "run" / "model" / FILE).is_file()


def test_gradient_checkpointing_keeps_the_gradients() -> None:
    unet = UNet2DConditionModel(small_unet_config())
    text = Conditioning(torch.randn(2, 5, 32))
    arguments = (torch.randn(2, unet.config.in_channels, 8, 8), torch.tensor([3, 900]), text)
    gradients = []
    for on in (False, True):
        unet.gradient_checkpointing = on
        unet.zero_grad()
        unet(*arguments).square().mean().backward()
        gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
