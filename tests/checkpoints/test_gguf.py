"""GGUF files: U-Nets of every stored type, complete models, shapes flattened for ComfyUI, and language models."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

from latentdiff.checkpoints.components import open_model, read_pipeline
from latentdiff.checkpoints.describe import describe
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.errors import CheckpointError
from tests.checkpoints.small_families import family_file

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_file("sd1", tmp_path_factory.mktemp("gguf"))


def write(
    path: Path, state: dict[str, torch.Tensor], kind: Type, architecture: str = "sd1", flatten: bool = False
) -> None:
    """A GGUF file; matrices are stored as `kind` if its block size divides their rows, other tensors in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    for name, tensor in state.items():
        array: Any = tensor.float().numpy()
        if flatten and array.ndim == 4 and array.size % block == 0 and array.shape[-1] % block:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in array.shape])
            array = array.reshape(-1, block)
        quantised = kind if array.ndim > 1 and array.shape[-1] % block == 0 else Type.F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "error"), [(Type.F16, 1e-3), (Type.BF16, 1e-2), (Type.Q8_0, 1e-2), (Type.Q5_0, 0.1), (Type.Q4_0, 0.2)]
)
def test_a_unet_is_dequantised(kind: Type, error: float, file: Path, tmp_path: Path) -> None:
    state = {key.removeprefix(UNET): value for key, value in load_file(file).items() if key.startswith(UNET)}
    write(tmp_path / "x.gguf", state, kind, flatten=kind is Type.Q8_0)
    with pytest.raises(CheckpointError, match="contains a U-Net; pass it by --unet"):
        open_model(tmp_path / "x.gguf")
    ours = read_pipeline(open_model(file, OpenOptions(unet=tmp_path / "x.gguf")), torch.float32).denoiser
    theirs = read_pipeline(open_model(file), torch.float32).denoiser
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.shape == other.shape and (one - other).norm() <= error * other.norm()


def test_a_complete_gguf_model(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", load_file(file), Type.F32)
    ours, theirs = (read_pipeline(open_model(path), torch.float32) for path in (tmp_path / "x.gguf", file))
    for one, other in zip(ours.text.parameters(), theirs.text.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_gguf_language_model_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", {"token_embd.weight": torch.zeros(4, 4)}, Type.F32, "llama")
    with pytest.raises(CheckpointError, match="is a GGUF model of architecture 'llama'; only Stable Diffusion"):
        open_model(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="is a GGUF model of architecture 'llama'"):
        list(describe(tmp_path / "x.gguf", OpenOptions()))
