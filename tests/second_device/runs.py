"""Training, sampling and evaluation on the second device: `python -m tests.second_device.runs LIBRARY JOBS.json`.

JOBS.json: `configs` to train, `resumed` configs to continue, `models` to generate with, and arguments of `evaluate`.
Prints one JSON object: the result of each job, and for each training step the number of times it would have waited for
the device.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.second_device.device import NAME, Device, register

NETWORKS = ("denoiser", "vae", "text")


def main(library: str, jobs: str) -> None:
    device = register(Path(library))
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    warnings.simplefilter("ignore")
    requests = json.loads(Path(jobs).read_text())
    trained = {config["run"]["output"]: train(device, config, resume=False) for config in requests["configs"]}
    trained |= {f"{c['run']['output']} --resume": train(device, c, resume=True) for c in requests["resumed"]}
    device.refuse_float64()
    images = {folder: {mode: draw(folder, mode) for mode in ("off", "auto")} for folder in requests["models"]}
    evaluate(requests["evaluate"])
    print(json.dumps({"trained": trained, "images": images}))


def train(device: Device, config: dict[str, Any], resume: bool) -> dict[str, Any]:
    from latentdiff.config.train import train_config
    from latentdiff.training import loop
    from latentdiff.training import train as training

    waits: list[int] = []
    places: set[str] = set()
    step = loop.Run.step

    def counted(self: loop.Run) -> Any:
        before = device.host_copies()
        losses = step(self)
        waits.append(device.host_copies() - before)
        if parts := getattr(self.task, "parts", None):
            places.update(f"{name} on {next(getattr(parts, name).parameters()).device.type}" for name in NETWORKS)
        return losses

    loop.Run.step = counted  # type: ignore[method-assign]
    try:
        training.train(train_config.validate_python(config), resume=resume)
    finally:
        loop.Run.step = step  # type: ignore[method-assign]
    lines = (Path(config["run"]["output"]) / "metrics.jsonl").read_text().splitlines()
    return {"lines": [json.loads(line) for line in lines], "waits": waits, "places": sorted(places)}


def draw(folder: str, optimize: str) -> Any:
    from latentdiff import LatentDiffusionPipeline

    pipe = LatentDiffusionPipeline.from_pretrained(folder, device=NAME, dtype="float32", optimize=optimize)
    assert next(pipe.denoiser.parameters()).device.type == NAME
    return (pipe("a red apple", seed=3, num_inference_steps=3, output_type="pt").images * 255).round().int().tolist()


def evaluate(words: list[str]) -> None:
    from latentdiff import cli

    sys.argv = ["latentdiff", "evaluate", *words, "--device", NAME]
    printed, sys.stdout = sys.stdout, sys.stderr
    try:
        cli.main()
    except SystemExit as stopped:
        if stopped.code:
            raise
    finally:
        sys.stdout = printed


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
