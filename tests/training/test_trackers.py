"""Values that are logged to trackers can be read back."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentdiff.errors import InputError
from latentdiff.training import trackers
from latentdiff.training.trackers import check_tracker, open_tracker

CONFIG = {"task": "unet", "data": {"batch_size": 4}, "sample_prompts": ["猫"]}
LOSSES = {10: 0.5, 20: 0.25}
WANDB = """
calls = []
class Run:
    def log(self, values, step): calls.append((values, step))
    def finish(self): calls.append("finished")
def init(**options):
    calls.append(options)
    return Run()
def Image(image): return image
"""
MLFLOW = """
from types import SimpleNamespace
calls = []
utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100))
def search_experiments(filter_string): return []
def create_experiment(name, artifact_location, tags): return name
def start_run(experiment_id, run_name, **_): calls.append((experiment_id, run_name))
def log_params(values): calls.append(values)
def log_metrics(values, step): calls.append((values, step))
def log_image(image, key, step): calls.append((key, image, step))
def end_run(): calls.append("finished")
"""


@pytest.fixture(autouse=True)
def _state() -> None:
    PartialState()


@pytest.fixture
def grid() -> Image.Image:
    return Image.effect_noise((20, 12), 60).convert("RGB")


def fake(name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Create an importable package with this code, and return it."""
    (folder / "packages").mkdir()
    (folder / "packages" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder / "packages")
    monkeypatch.delitem(sys.modules, name, raising=False)
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return __import__(name)


def track(name: str, output: Path, grid: Image.Image) -> None:
    tracker = open_tracker(name, output, CONFIG)
    for step, loss in LOSSES.items():
        tracker.log({"loss": loss}, step)
    tracker.image("samples", grid, 20)
    tracker.close()


@pytest.mark.parametrize("name", ["tensorboard", "auto"])
def test_tensorboard_reads_back_what_was_logged(name: str, tmp_path: Path, grid: Image.Image) -> None:
    track(name, tmp_path, grid)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == LOSSES
    [image] = events.Images("samples")
    (tmp_path / "read.png").write_bytes(image.encoded_image_string)
    assert image.step == 20 and np.array_equal(np.asarray(Image.open(tmp_path / "read.png")), np.asarray(grid))
    [text] = events.Tensors("config/text_summary")
    assert "batch_size: 4" in text.tensor_proto.string_val[0].decode()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tensorboard"]


def test_wandb_receives_everything_and_its_variables_apply(
    tmp_path: Path, grid: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = fake("wandb", WANDB, tmp_path, monkeypatch)
    track("wandb", tmp_path, grid)
    own = {"project": "latentdiff", "name": tmp_path.name, "dir": str(tmp_path), "config": CONFIG}
    logged = [({"loss": loss}, step) for step, loss in LOSSES.items()]
    assert wandb.calls == [own, *logged, ({"samples": [grid]}, 20), "finished"]
    variables = {"project": "WANDB_PROJECT", "name": "WANDB_NAME", "dir": "WANDB_DIR"}
    for variable in variables.values():
        monkeypatch.setenv(variable, "mine")
    open_tracker("wandb", tmp_path, CONFIG)
    assert wandb.calls[-1] == own | dict.fromkeys(variables, "mine")


def test_mlflow_receives_everything(tmp_path: Path, grid: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = fake("mlflow", MLFLOW, tmp_path, monkeypatch)
    track("mlflow", tmp_path, grid)
    settings = {"task": "unet", "data.batch_size": 4, "sample_prompts": ["猫"]}
    logged = [({"loss": loss}, step) for step, loss in LOSSES.items()]
    assert mlflow.calls == [
        ("latentdiff", tmp_path.name), settings, *logged, ("samples", grid, 20), "finished",
    ]  # fmt: skip


def test_a_tracker_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("wandb", "def init(**_): raise ConnectionError('no\\nkey')", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"^tracker='wandb' did not start \(no key\); run wandb login, or set WANDB_M"):
        open_tracker("wandb", tmp_path, CONFIG)


def test_names(tmp_path: Path, grid: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    track("none", tmp_path, grid)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"tracker='tensorbord' is unknown; did you mean 'tensorboard'\?"):
        check_tracker("tensorbord")
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    assert check_tracker("auto") == "none"
    for name in ("tensorboard", "wandb", "mlflow"):
        with pytest.raises(InputError, match=rf'pip install "latentdiff\[{name}\]"'):
            check_tracker(name)
