"""Several LoRAs at once: weights per part, which can be changed and removed completely."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import Components, read_pipeline
from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.errors import CheckpointError, InputError
from latentdiff.training.lora import add_lora
from tests.checkpoints.test_lora_kinds import LAYER, pipeline, weight


def trained(folder: Path, target: Path, seed: int, text: bool = True) -> Path:
    torch.manual_seed(seed)
    parts: Components = read_pipeline(folder, torch.float32)
    add_lora(parts, rank=2, text_encoder=text)
    for model in (parts.denoiser, parts.text):
        for name, value in model.named_parameters():
            if "lora" in name:
                value.data += 0.1 * torch.randn_like(value)
    save_lora(parts, target)
    return target


@pytest.fixture(scope="module")
def loras(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [trained(model_folder, folder / name, seed) for seed, name in enumerate(("one", "two"))]


def test_several_with_weights_equal_diffusers(model_folder: Path, loras: list[Path]) -> None:
    ours = pipeline(model_folder)
    assert [ours.load_lora(path) for path in loras] == ["one", "two"]
    ours.set_adapters({"one": 0.8, "two": (0.5, 0.0)})
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    for path in loras:
        theirs.load_lora_weights(path, adapter_name=path.name)
    theirs.set_adapters(["one", "two"], [0.8, {"unet": 0.5, "text_encoder": 0.0}])
    theirs.fuse_lora()
    wanted = theirs.unet.get_submodule(LAYER).base_layer.weight
    assert torch.allclose(weight(ours.denoiser, LAYER), wanted, atol=1e-5)
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    name = next(n for n, _ in theirs.text_encoder.named_modules() if n.endswith(layer.removeprefix("text_model.")))
    assert torch.allclose(
        weight(ours.text.encoders[0], layer), theirs.text_encoder.get_submodule(name).base_layer.weight, atol=1e-5
    )


@pytest.mark.parametrize("optimize", ["off", "auto"])
def test_weights_are_restored_to_the_bit_after_changes(optimize: str, model_folder: Path, loras: list[Path]) -> None:
    pipe = pipeline(model_folder, optimize)
    draw: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "output_type": "pt"}
    base = pipe("a red apple", **draw).images
    for path in loras:
        pipe.load_lora(path)
    both = pipe("a red apple", **draw).images
    pipe.set_adapters({"one": 0.3})
    one = pipe("a red apple", **draw).images
    pipe.set_adapters({"one": 1.0, "two": 1.0})
    assert torch.equal(pipe("a red apple", **draw).images, both)
    pipe.set_adapters({})
    assert torch.equal(pipe("a red apple", **draw).images, base) and pipe.adapters == {"one": (0, 0), "two": (0, 0)}
    pipe.unload_lora()
    assert torch.equal(pipe("a red apple", **draw).images, base) and pipe.adapters == {}
    assert not torch.equal(one, both) and not torch.equal(one, base)


def test_changing_500_times_keeps_memory_and_weights(model_folder: Path, loras: list[Path]) -> None:
    pipe = pipeline(model_folder)
    before = {key: value.clone() for key, value in pipe.denoiser.state_dict().items()}
    for path in loras:
        pipe.load_lora(path)
    tensors = len(pipe._loras._copies)
    for k in range(500):
        keys = sorted(pipe._loras.loaded["one"].deltas)[:3]
        pipe._loras.weights = {"one": (k / 500, 1.0)}
        pipe._loras.apply({"unet": pipe.denoiser, "text_encoder": pipe.text.encoders[0]}, keys)
    pipe.unload_lora()
    assert len(pipe._loras._copies) == tensors == 0
    assert all(torch.equal(value, before[key]) for key, value in pipe.denoiser.state_dict().items())


def test_only_layers_with_other_weights_are_computed(model_folder: Path, loras: list[Path]) -> None:
    pipe = pipeline(model_folder)
    pipe.load_lora(loras[0], name="one")
    between, every = pipe._loras.layers_between, set(pipe._loras.loaded["one"].deltas)
    assert between({"one": (1.0, 1.0)}, {}) == every and not between({"one": (0.0, 0.0)}, {})
    assert between({"one": (1.0, 1.0)}, {"one": (0.5, 1.0)}) == {key for key in every if key[0] == "unet"}
    assert between({"one": (1.0, 1.0)}, {"one": (1.0, 0.5)}) == {key for key in every if key[0] != "unet"}


def test_a_model_created_in_memory_is_restored_to_the_bit_too(model_folder: Path, loras: list[Path]) -> None:
    parts = replace(read_pipeline(model_folder, torch.float32), source=None)
    pipe = LatentDiffusionPipeline(parts, torch.device("cpu"), torch.float32)
    before = weight(pipe.denoiser, LAYER)
    pipe.load_lora(loras[0])
    assert not torch.equal(weight(pipe.denoiser, LAYER), before)
    pipe.unload_lora()
    assert torch.equal(weight(pipe.denoiser, LAYER), before)


def test_names_and_weights_are_checked(model_folder: Path, loras: list[Path]) -> None:
    pipe = pipeline(model_folder)
    assert pipe.load_lora(loras[0], name="a") == "a"
    for call, message in (
        (lambda: pipe.load_lora(loras[1], name="a"), "a LoRA named 'a' is already loaded"),
        (lambda: pipe.set_adapters({"b": 1.0}), "no LoRA named 'b' is loaded"),
        (lambda: pipe.set_adapters({"a": "x"}), "give a number, or a pair"),  # type: ignore[dict-item]
        (lambda: pipe.set_adapters({"a": (1.0, 2.0, 3.0)}), "give a number, or a pair"),  # type: ignore[dict-item]
        (lambda: pipe.set_adapters({"a": float("nan")}), "give a number, or a pair"),
        (lambda: pipe.unload_lora("b"), "no LoRA named 'b' is loaded"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_lora_of_another_family_is_one_line(model_folder: Path, xl_folder: Path, loras: list[Path]) -> None:
    with pytest.raises(CheckpointError, match="made for another kind of model") as caught:
        pipeline(xl_folder).load_lora(loras[0])
    assert "\n" not in str(caught.value)
