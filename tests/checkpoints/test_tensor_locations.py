"""Tensors in files: located without reading, then read a few at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentdiff.checkpoints import tensor_locations
from latentdiff.checkpoints.tensor_locations import find_tensors, map_tensors, read_tensors
from latentdiff.errors import CheckpointError


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    state = {f"t{k}": torch.randn(k + 1, 3).to(torch.float16 if k % 2 else torch.float32) for k in range(7)}
    save_file(state, tmp_path / "x.safetensors")
    return state


@pytest.mark.parametrize("most", [0, 50, 2**20])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_copies_equal_the_tensors_of_the_file_in_order(
    most: int,
    dtype: torch.dtype | None,
    state: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_locations, "MAPPED_BYTES", most)
    locations = find_tensors(tmp_path, "x", str)
    assert {key: location.shape for key, location in locations.items()} == {
        key: value.shape for key, value in state.items()
    }
    read = dict(zip(locations, read_tensors(locations.values(), dtype), strict=True))
    assert all(torch.equal(read[key], state[key].to(dtype or state[key].dtype)) for key in state)
    assert all(value.is_contiguous() and value.data_ptr() % 16 == 0 for value in read.values())


def test_names_are_changed_and_omitted(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    locations = find_tensors(tmp_path, "x", lambda name: None if name == "t3" else f"new.{name}")
    assert set(locations) == {f"new.{key}" for key in state} - {"new.t3"}
    assert torch.equal(next(map_tensors([locations["new.t2"]])), state["t2"])


def test_a_deleted_file_is_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    locations = find_tensors(tmp_path, "x", str)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors is missing or damaged") as caught:
        list(map_tensors(locations.values()))
    assert "\n" not in str(caught.value)
