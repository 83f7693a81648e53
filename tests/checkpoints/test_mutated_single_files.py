"""Single files with one changed tensor: loaded correctly and completely, or a one-line error that names the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from latentdiff.checkpoints.components import open_model, read_pipeline
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.errors import CheckpointError, LatentDiffError
from tests.checkpoints.test_mutated_files import EXAMPLES

State = dict[str, torch.Tensor]
FAMILIES = ("sd1", "sd2-v", "xl", "xl-refiner")
FLOATS = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)
SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flat": lambda t: t.flatten(),
    "transposed": lambda t: t.transpose(0, -1),
    "one row less": lambda t: t[:-1],
    "one row more": lambda t: torch.cat([t, t[:1]]) if t.ndim else t.repeat(2),
    "another dimension": lambda t: t[None],
    "empty": lambda t: t.flatten()[:0],
}
NEW_NAMES = ("{}x", "{}.x", "x.{}", "model.{}", "{}_scale")
EXTRAS = (
    "model.diffusion_model.extra.weight", "model.diffusion_model.input_blocks.0.0.weight.scale", "extra.weight",
    "first_stage_model.encoder.extra", "cond_stage_model.transformer.text_model.extra", "lora_unet_x.lora_up.weight",
    "conditioner.embedders.1.model.extra", "model_ema.decay", "conditioner.embedders.0.model.extra",
)  # fmt: skip


@pytest.fixture(scope="module")
def originals(files: Any) -> dict[str, tuple[State, dict[str, State]]]:
    """The tensors of each family's file in float16, and the weights of its networks."""
    found = {}
    for family in FAMILIES:
        state = {name: tensor.half() for name, tensor in load_file(files(family)).items()}
        loaded = weights_of(files(family))
        found[family] = state, {part: {k: v.half().float() for k, v in own.items()} for part, own in loaded.items()}
    return found


def weights_of(file: Path) -> dict[str, State]:
    parts = read_pipeline(open_model(file, OpenOptions(prediction_type="epsilon")), torch.float32)
    return {name: getattr(parts, name).state_dict() for name in ("denoiser", "vae", "text")}


def mutate(state: State, draw: Callable[[Any], Any]) -> tuple[State, torch.dtype | None]:
    """The tensors with one of them changed, and its new dtype if that is a floating-point type."""
    state, name = dict(state), draw(st.sampled_from(sorted(state)))
    kind = draw(st.sampled_from(["drop", "rename", "shape", "dtype", "extra"]))
    if kind == "extra":
        state[draw(st.sampled_from(EXTRAS))] = torch.zeros(draw(st.sampled_from([(1,), (64,), (64, 64)])))
        return state, None
    tensor = state.pop(name)
    if kind == "rename":
        state[draw(st.sampled_from(NEW_NAMES)).format(name)] = tensor
    elif kind == "shape":
        state[name] = SHAPES[draw(st.sampled_from(sorted(SHAPES)))](tensor).contiguous()
        assume(state[name].shape != tensor.shape)  # a square matrix that is transposed looks like any other
    elif kind == "dtype":
        dtype = draw(st.sampled_from(FLOATS + INTEGERS))
        state[name] = tensor.to(dtype)
        return state, dtype if dtype in FLOATS else None
    return state, None


def loads_rightly(file: Path, expected: dict[str, State], dtype: torch.dtype | None) -> None:
    """Every weight is correct, at most rounded to `dtype`, or a one-line error names the file."""
    try:
        found = weights_of(file)
    except LatentDiffError as error:
        message = str(error)
        found = {}
    if not found:
        assert str(file) in message and "\n" not in message and len(message) < 700
        return
    for part, own in expected.items():
        assert found[part].keys() == own.keys()
        for key, wanted in own.items():
            rounded = wanted if dtype is None else wanted.to(dtype).float()
            assert torch.equal(found[part][key], wanted) or torch.equal(found[part][key], rounded), f"{part} {key}"


@settings(
    max_examples=max(EXAMPLES // 6, 1), deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_one_changed_tensor(originals: Any, tmp_path: Path, data: st.DataObject) -> None:
    state, expected = originals[data.draw(st.sampled_from(FAMILIES))]
    changed, dtype = mutate(state, data.draw)
    save_file(changed, tmp_path / "x.safetensors")
    loads_rightly(tmp_path / "x.safetensors", expected, dtype)


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.001, 0.5, 0.9, 1 - 1e-7])
def test_a_file_that_was_cut(fraction: float, files: Any, tmp_path: Path) -> None:
    data = files("sd1").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is missing or damaged"):
        weights_of(tmp_path / "x.safetensors")


def changed(state: State, name: str, tensor: torch.Tensor | None) -> State:
    return {key: value for key, value in {**state, name: tensor}.items() if value is not None}


@pytest.mark.parametrize(
    ("family", "name", "change", "message"),
    [
        ("sd1", "model.diffusion_model.out.2.bias", None, r"\(U-Net\): the weights lack tensor conv_out.bias"),
        ("sd1", "first_stage_model.decoder.norm_out.weight", None, r"\(VAE\): the weights lack tensor decoder"),
        ("sd1", "model.diffusion_model.out.2.bias", torch.zeros(4, dtype=torch.int8), "conv_out.bias is stored as I8"),
        ("sd1", "model.diffusion_model.out.2.bias", torch.zeros(5), r"conv_out.bias is \[5\], but \[4\] according to"),
        (
            "sd1",
            "model.diffusion_model.out.2.scale_weight",
            torch.ones(1),
            "have an unknown tensor conv_out.scale_weight",
        ),
        (
            "sd1",
            "model.diffusion_model.input_blocks.0.0.weight",
            None,
            "a VAE and a text encoder, but no readable U-Net",
        ),
        (
            "sd2-v",
            "cond_stage_model.model.positional_embedding",
            None,
            "a U-Net and a VAE, but no readable text encoder",
        ),
        (
            "sd2-v",
            "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
            torch.zeros(193, 64),
            "in_proj_weight has 193 rows, which three weights share",
        ),
    ],
)
def test_the_tensor_is_named(
    family: str, name: str, change: torch.Tensor | None, message: str, originals: Any, tmp_path: Path
) -> None:
    save_file(changed(originals[family][0], name, change), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        weights_of(tmp_path / "x.safetensors")
