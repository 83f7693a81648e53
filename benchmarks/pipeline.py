"""Whole pictures, ours and diffusers' from the same folder, alternately in one run: `python -m benchmarks.pipeline`."""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, hardware, versions
from latentdiff import LatentDiffusionPipeline, __version__
from latentdiff.checkpoint import locate
from latentdiff.runtime import DTYPES, pick_device

PROMPT = "a red apple"


def ours(folder: Path, device: str, dtype: str, steps: int, batch: int) -> Callable[[], Any]:
    pipe = LatentDiffusionPipeline.from_pretrained(folder, device=device, dtype=dtype)
    return lambda: pipe(PROMPT, num_inference_steps=steps, guidance_scale=5.0, seed=0, num_images_per_prompt=batch)


def theirs(folder: Path, device: str, dtype: str, steps: int, batch: int) -> Callable[[], Any]:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype]).to(device)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor

    def run() -> Any:
        return pipe(
            PROMPT, num_inference_steps=steps, guidance_scale=5.0, num_images_per_prompt=batch, height=size, width=size
        )

    return run


def alternate(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, taken in turn so that a busy machine disturbs all alike; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: dict[str, list[float]], base: str) -> str:
    reference = statistics.median(seconds[base])
    lines = ["| | median s | min s | of diffusers float32 |", "|---|---|---|---|"]
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(f"| {name} | {median:.3f} | {min(values):.3f} | {median / reference:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    folder, device = locate(given.model), pick_device(given.device)
    calls = {
        f"{name} {dtype}": make(folder, str(device), dtype, given.steps, given.batch)
        for dtype in ("float32", "bfloat16")
        for name, make in (("diffusers", theirs), ("latentdiff", ours))
    }
    rows = table(alternate(calls, given.rounds, device), "diffusers float32")
    text = (
        f"# Whole pictures, {date.today()}\n\n{folder.name}, {given.steps} DDIM steps, guidance 5, "
        f"batch {given.batch}, {hardware(device)}, {torch.get_num_threads()} threads; "
        f"median of {given.rounds} after one warm-up, alternately.\n"
        f"latentdiff {__version__}, {versions()}\n\n{rows}\n\n"
        f"`python -m benchmarks.pipeline --steps {given.steps} --batch {given.batch}`\n"
    )
    RESULTS.mkdir(exist_ok=True)
    name = f"pipeline_{hardware(device).replace(' ', '-')}_{date.today()}.md"
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
