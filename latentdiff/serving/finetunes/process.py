"""The process of a fine-tune, `latentdiff finetune`: start it, find it after a restart of the server, and stop it."""

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from latentdiff.data.check import ERRORS
from latentdiff.serving.errors import ServingError, without_folders
from latentdiff.serving.finetunes.folder import ConflictError, FineTune, FineTunes
from latentdiff.serving.finetunes.pictures import last_change
from latentdiff.serving.models import ModelSpec

Status = Literal["new", "running", "stopping", "stopped", "failed", "finished"]
PROCESS, SETTINGS, CHECK = "process.json", "settings.json", "check.json"
TAIL_BYTES = 8192
CHECK_SECONDS = 600
OPENING = ("vae", "unet", "variant", "prediction_type")  # options with which the server opens a model
QUIET = {"TQDM_MININTERVAL": "5"}  # the log grows slowly


class Settings(BaseModel):
    """The settings of `latentdiff finetune` that the page offers; None means the default of the command."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="A model listed by /v1/capabilities.")
    method: Literal["lora", "dora"] = "lora"
    trigger: str = Field(
        "", max_length=200, pattern=r"^[^\x00-\x1f]*$", description="Words added before every caption."
    )
    steps: StrictInt | None = Field(None, ge=1, le=100_000)
    learning_rate: StrictFloat | None = Field(None, gt=0, le=1)
    rank: StrictInt | None = Field(None, ge=1, le=512)
    resolution: StrictInt | None = Field(None, ge=8, le=2048)
    train_text: StrictBool = False
    skip_bad: StrictBool = False

    def options(self, model: ModelSpec) -> list[str]:
        """Command line options. Values are joined by `=`, so that none can be parsed as an option."""
        opening = {name.replace("_", "-"): model.options.get(name) for name in OPENING}
        named = {
            "model": model.path,
            **opening,
            "method": self.method,
            "trigger": self.trigger.strip() or None,
            "steps": self.steps,
            "learning-rate": self.learning_rate,
            "rank": self.rank,
            "resolution": self.resolution,
        }
        allow_pickle = bool(model.options.get("allow_pickle"))
        switches = {"train-text": self.train_text, "skip-bad": self.skip_bad, "allow-pickle": allow_pickle}
        given = [f"--{name}={value}" for name, value in named.items() if value is not None]
        return given + [f"--{name}" for name, on in switches.items() if on]


def check_pictures(one: FineTune, settings: Settings, model: ModelSpec) -> dict[str, Any]:
    """The output of `latentdiff data check --json`, cached until the pictures change. Raises ServingError."""
    before = last_change(one)
    wanted = ("--model=", "--trigger=", "--resolution=", "--variant=", "--prediction-type=", "--allow-pickle")
    options = [option for option in settings.options(model) if option.startswith(wanted)]
    command = [sys.executable, "-m", "latentdiff", "data", "check", str(one.pictures), "--json", *options]
    done = subprocess.run(command, capture_output=True, timeout=CHECK_SECONDS, check=False, env=os.environ | QUIET)
    if done.returncode not in (0, 1):
        raise ServingError(_last_line(done.stderr, one))
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise ServingError(_last_line(done.stderr, one)) from error
    kept = {name: report[name] for name in ("pictures", "captions", "buckets", "enlarged", "findings")}
    kept["findings"] = [
        {name: without_folders(finding[name]) for name in ("kind", "name", "detail")} for finding in kept["findings"]
    ]
    kept["unusable"] = len({finding["name"] for finding in report["findings"] if finding["kind"] in ERRORS})
    kept["warnings"] = len(report["findings"]) - report["errors"]
    if last_change(one) == before:
        one.write(CHECK, kept)
    return kept


def start(finetunes: FineTunes, one: FineTune, settings: Settings, model: ModelSpec) -> None:
    """Start or resume training. Raises ConflictError while a fine-tune is running."""
    if (running := next((other for other in finetunes.all() if is_running(other)), None)) is not None:
        raise ConflictError(f"{running.name} is being trained; wait for it or stop it first")
    command = finetune_command(one, settings, model)
    with one.log.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=os.environ | QUIET
        )
    one.write(SETTINGS, settings.model_dump())
    one.write(PROCESS, {"pid": child.pid, "created": psutil.Process(child.pid).create_time(), "stopping": False})
    threading.Thread(target=child.wait, daemon=True).start()  # so that it does not remain a zombie


def finetune_command(one: FineTune, settings: Settings, model: ModelSpec) -> list[str]:
    """The command line that trains, or resumes from a checkpoint."""
    options = settings.options(model) + ["--resume"] * one.started
    return [sys.executable, "-m", "latentdiff", "finetune", str(one.pictures), f"--output={one.output}", *options]


def is_running(one: FineTune) -> bool:
    """Whether its process is running, even if an earlier server started it."""
    return _process(one) is not None


def status(one: FineTune, total: int) -> Status:
    """The status of a fine-tune. total: the steps that were planned."""
    began = one.read(PROCESS)
    if not began:
        return "new"
    if is_running(one):
        return "stopping" if began["stopping"] else "running"
    if 0 < total <= one.steps_saved:
        return "finished"
    return "stopped" if began["stopping"] else "failed"


def stop(one: FineTune) -> None:
    """Ask the process to save a checkpoint and end. Raises ConflictError if it is not running."""
    process = _process(one)
    if process is None:
        raise ConflictError(f"{one.name} is not being trained")
    one.write(PROCESS, one.read(PROCESS) | {"stopping": True})
    process.terminate()


def stop_all(finetunes: FineTunes, seconds: float) -> None:
    """Stop the running fine-tune, and wait until its checkpoint is saved."""
    running = [one for one in finetunes.all() if is_running(one)]
    for one in running:
        stop(one)
    deadline = time.monotonic() + seconds
    while any(map(is_running, running)) and time.monotonic() < deadline:
        time.sleep(0.1)


def failure(one: FineTune) -> str:
    """The last line of output of the process, which is its error."""
    try:
        with one.log.open("rb") as file:
            file.seek(max(0, one.log.stat().st_size - TAIL_BYTES))
            return _last_line(file.read(), one)
    except OSError:
        return ""


def _process(one: FineTune) -> psutil.Process | None:
    began = one.read(PROCESS)
    try:
        process = psutil.Process(int(began["pid"]))
        same = abs(process.create_time() - float(began["created"])) < 1  # process ids are reused
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, psutil.Error):
        return None


def _last_line(output: bytes, one: FineTune) -> str:
    lines = output.decode(errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "the process ended without a message")
    return without_folders(last.removeprefix("error: ").replace(f"{one.folder}{os.sep}", ""))[:500]
