"""The model hash covers everything that affects an image and nothing else, and reads each file once."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from latentdiff.checkpoints.components import open_model
from latentdiff.checkpoints.folder import WEIGHTS
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.recipe import model_hash
from latentdiff.recipe.model_hash import hash_model


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_unused_files_and_file_names_do_not_affect_the_hash(folder: Path) -> None:
    first = hash_model(folder)
    (folder / "safety_checker").mkdir()
    shutil.copy(folder / "unet" / f"{WEIGHTS}.safetensors", folder / "safety_checker" / "model.safetensors")
    (folder / "README.md").write_text("read me")
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    weights.rename(weights.with_name(f"{WEIGHTS}.fp16.safetensors"))
    assert hash_model(folder) == first


def test_schedule_config_weights_and_additions_affect_the_hash(folder: Path) -> None:
    hashes = [hash_model(folder), hash_model(folder, folder / "model_index.json")]
    hashes.append(hash_model(open_model(folder, OpenOptions(prediction_type="v_prediction"))))
    change(folder / "scheduler" / "scheduler_config.json", beta_end=0.02)
    hashes.append(hash_model(folder))
    change(folder / "vae" / "config.json", scaling_factor=0.5)
    hashes.append(hash_model(folder))
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(path)
    state["conv_in.bias"] += 1
    save_file(state, path)
    hashes.append(hash_model(folder))
    assert len(set(hashes)) == len(hashes)


def test_an_unchanged_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = hash_model(folder), []
    digest = model_hash.hashlib.file_digest
    monkeypatch.setattr(
        model_hash.hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name)
    )
    assert hash_model(folder) == first and read == []
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    path.touch()
    assert hash_model(folder) == first and read == [str(path)]


def test_a_damaged_or_missing_cache_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_model(folder)
    (model_hash.cache_folder() / model_hash.CACHE).write_text('{"x": 3, "y": [')
    assert hash_model(folder) == first
    monkeypatch.setattr(model_hash, "cache_folder", lambda: Path("/proc/nowhere"))
    assert hash_model(folder) == first
