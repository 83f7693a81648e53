"""Replaces `latentdiff finetune` in tests of the server: writes the files of a run without training.

Arguments: the output folder, then `finish`, `fail`, or `wait` (two steps, then until SIGTERM), then the steps.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from PIL import Image
from PIL.PngImagePlugin import PngInfo

output, how, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def sample(step: int) -> None:
    grid = Image.new("RGB", (16, 8), "red")
    grid.paste("blue", (8, 0, 16, 8))
    chunks = PngInfo()
    chunks.add_itxt("captions", json.dumps(["a cat", "a dog"]))
    (output / "samples").mkdir(parents=True, exist_ok=True)
    path = output / "samples" / f"{step:07d}.png"
    grid.save(path.with_suffix(".partial"), format="PNG", pnginfo=chunks)
    path.with_suffix(".partial").rename(path)  # the server may read it at any time


def save(step: int) -> None:
    (output / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
    if lora := os.environ.get("FAKE_LORA"):
        (output / "model").mkdir(exist_ok=True)
        shutil.copy(lora, output / "model" / "pytorch_lora_weights.safetensors")


def end(step: int) -> None:
    save(step)
    print(f"stopped and saved at step {step}", file=sys.stderr)
    sys.exit(143)


def step_once(step: int) -> None:
    with (output / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "time": time.time(), "loss": 1 / step}) + "\n")


def on_stop(_: int, __: FrameType | None) -> None:
    end(2)


sample(0)
(output / "config.yaml").write_text(f"optim: {{max_steps: {steps}}}\n")
if how == "wait":
    signal.signal(signal.SIGTERM, on_stop)
    for step in (1, 2):
        step_once(step)
    time.sleep(60)
if how == "fail":
    print("checking: 100%\rerror: the loss is NaN at step 2; lower --learning-rate", file=sys.stderr)
    sys.exit(2)
for step in range(1, steps + 1):
    step_once(step)
sample(steps)
save(steps)
