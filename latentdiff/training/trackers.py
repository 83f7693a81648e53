"""Log to TensorBoard, Weights & Biases or MLflow with accelerate's trackers, extended by images."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from latentdiff.errors import InputError, did_you_mean

PROJECT = "latentdiff"
KNOWN = ("auto", "none", "tensorboard", "wandb", "mlflow")
ADVICE = {
    "tensorboard": "check that the folder is writable",
    "wandb": "run wandb login, or set WANDB_MODE=offline",
    "mlflow": "check MLFLOW_TRACKING_URI",
}


class Tracker:
    """Receives metrics in addition to `metrics.jsonl`; this base class discards them."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the metrics of one step. Steps increase within a run."""

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Log an image of one step."""

    def close(self) -> None:
        """Flush and close."""


def check_tracker(name: str) -> str:
    """Resolve the name of a tracker: `auto` is tensorboard if it is installed, else none.

    Raises InputError for an unknown name or a missing package. Nothing is imported.
    """
    if name not in KNOWN:
        raise InputError(f"tracker={name!r} is unknown; {did_you_mean(name, KNOWN)}")
    if name == "auto":
        return "tensorboard" if find_spec("tensorboard") else "none"
    if name != "none" and not find_spec(name):
        raise InputError(f'tracker={name!r} requires a package that is missing; pip install "latentdiff[{name}]"')
    return name


def open_tracker(name: str, output: Path, config: dict[str, Any]) -> Tracker:
    """Start tracking the run in `output`.

    Call it in the main process, after the Accelerator is created, since accelerate's trackers use its state.
    The environment variables of wandb (WANDB_MODE, WANDB_PROJECT, …) and MLflow (MLFLOW_TRACKING_URI, …) apply.
    Raises InputError if the tracker is unknown, not installed or does not start.
    """
    chosen = check_tracker(name)
    if chosen == "none":
        return Tracker()
    try:
        return STARTS[chosen](output, config)
    except Exception as error:  # each tracker has its own types, for example for a missing login
        reason = " ".join(str(error).split())
        raise InputError(f"tracker={chosen!r} did not start ({reason}); {ADVICE[chosen]}, or use none") from error


class _Accelerate(Tracker):
    """One of accelerate's trackers, started."""

    def __init__(self, inner: GeneralTracker) -> None:
        self.inner = inner
        inner.start()

    def log(self, values: dict[str, float], step: int) -> None:
        self.inner.log(values, step=step)

    def close(self) -> None:
        self.inner.finish()


class _TensorBoard(_Accelerate):
    """Event files in `output/tensorboard`. The config is logged as text: hyperparameters would create a new run."""

    def __init__(self, output: Path, config: dict[str, Any]) -> None:
        super().__init__(TensorBoardTracker("tensorboard", output))
        text = yaml.safe_dump(config, allow_unicode=True).replace("\n", "\n    ")
        self.inner.log({"config": f"    {text}"}, step=0)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.inner.log_images({name: np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")


class _WandB(_Accelerate):
    """wandb prefers arguments to its environment variables, so the variables are read here."""

    def __init__(self, output: Path, config: dict[str, Any]) -> None:
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        name, folder = os.environ.get("WANDB_NAME", output.name), os.environ.get("WANDB_DIR", str(output.resolve()))
        super().__init__(WandBTracker(project, name=name, dir=folder, config=config))

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.inner.log_images({name: [image]}, step=step)


class _MLflow(_Accelerate):
    """A run of the experiment that MLFLOW_EXPERIMENT_NAME names, by default `latentdiff`."""

    def __init__(self, output: Path, config: dict[str, Any]) -> None:
        super().__init__(MLflowTracker(PROJECT, run_name=output.name))
        self.inner.store_init_configuration(_flat(config))

    def image(self, name: str, image: Image.Image, step: int) -> None:
        import mlflow

        mlflow.log_image(image, key=name, step=step)


STARTS = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to `group.key`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
