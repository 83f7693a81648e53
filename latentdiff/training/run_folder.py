"""The output folder of a training run: the paths of its files, and a check that a run may use it."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from latentdiff.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """The paths of the files that a run writes."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data_check(self) -> Path:
        """The result of the data check: the first file that a run writes."""
        return self.path / "data.json"

    @property
    def data_pictures(self) -> Path:
        """A strip of a few training pictures."""
        return self.path / "data.png"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def captions(self) -> Path:
        """The cache of encoded captions."""
        return self.path / "text.safetensors"

    @property
    def prior(self) -> Path:
        """The class images of prior preservation."""
        return self.path / "prior"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that a run of task text_encoder trains."""
        return self.path / "tokenizer"

    def latents(self, part: str) -> Path:
        """The cache of encoded pictures of `train` or `held_out`."""
        return self.path / f"latents-{part}"

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, newest first."""
        return sorted(self.path.glob("checkpoints/step-*[0-9]"), reverse=True)

    def check(self, resume: bool, task: str) -> None:
        """Raise InputError unless the folder is new or empty, or with `resume` contains a run of this task."""
        found = self.checkpoints()
        if resume and found and (other := self._task()) not in (task, None):
            raise InputError(
                f"{self.path} is a run of task {other}, not {task}; resume it with "
                f"latentdiff train {self.config} --resume"
            )
        if resume and not found:
            raise InputError(f"{self.path} has no checkpoint to resume from; omit --resume to start a run there")
        if found and not resume:
            raise InputError(f"{found[0]} exists; resume the run with --resume, or use another folder for a new run")
        if self.path.is_dir() and not found and not self.data_check.exists() and (others := self._visible()):
            raise InputError(
                f"{self.path} contains {others[0].name}, which is not part of a run; use a new or empty folder"
            )

    def _task(self) -> str | None:
        """The task in the folder's config, None if the config cannot be read."""
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None
        return str(config["task"]) if isinstance(config, dict) and "task" in config else None

    def _visible(self) -> list[Path]:
        return sorted(path for path in self.path.iterdir() if not path.name.startswith("."))
