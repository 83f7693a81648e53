"""The additional cost of editing, and the rate and memory of its commands: `python -m benchmarks.editing`."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from benchmarks.coldstart import start
from benchmarks.machine import device_option
from benchmarks.report import table, write
from benchmarks.turns import alternate
from latentdiff import LatentDiffusionPipeline
from latentdiff.animation import animate
from latentdiff.cli.progress import EVERY, PreviewFile
from latentdiff.denoiser import keep_known
from latentdiff.inputs import read_inputs
from latentdiff.sampling.loop import StepInfo

PROMPT, OTHER = "a red apple", "an orange"
LARGEST_WHOLE = 1024  # pixels along each side
PARTS = ("steps", "rates", "memory")


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best(call: Callable[[], Any], times: int = 50) -> float:
    """Seconds of a short call: the median of several."""
    return statistics.median(seconds(call) for _ in range(times))


def step_seconds(pipe: LatentDiffusionPipeline, arguments: dict[str, Any]) -> list[float]:
    """The seconds of each step of a call, except the first."""
    moments: list[float] = []
    pipe(callback=lambda _: moments.append(time.perf_counter()), **arguments)
    return [later - earlier for earlier, later in pairwise(moments)]


def sampling(pipe: LatentDiffusionPipeline, arguments: dict[str, Any]) -> float:
    """Seconds of all steps of a call, without encoding and decoding."""
    inputs = read_inputs(pipe.limits, **arguments)
    rows = pipe.start(inputs)
    return seconds(lambda: pipe.sample_rows(rows, inputs))


def additions(pipe: LatentDiffusionPipeline, call: dict[str, Any], rounds: int) -> list[list[str]]:
    """The time of image to image relative to text to image, and the additional time of masks and previews per step,
    timed separately.
    """
    image = pipe(**call).images[0]
    mask = Image.new("L", image.size)
    mask.paste(255, (image.width // 4, image.height // 4, image.width // 2, image.height // 2))
    half = call | {"image": image, "strength": 0.5}

    turns = alternate({"all": lambda: sampling(pipe, call), "half": lambda: sampling(pipe, half)}, rounds)
    whole, part = (statistics.median(turns[name]) for name in ("all", "half"))
    step = statistics.median(step_seconds(pipe, call))
    inputs = read_inputs(pipe.limits, **call, image=image, mask_image=mask)
    rows = pipe.start(inputs)
    x0 = torch.stack([row.state.latents for row in rows])
    keep = best(lambda: keep_known(lambda latents, _: latents, rows)(x0, None))  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        preview = PreviewFile(Path(folder) / "look.png", 1, pipe)
        shown = best(lambda: preview(StepInfo(1, 2, 0.0, x0, x0))) / EVERY
    return [
        [
            "sampling at strength 0.5, relative to text to image",
            f"{part:.3f} s of {whole:.3f} s",
            f"{part / whole:.2f}",
        ],
        ["a mask, relative to a step", f"{1e3 * keep:.3f} ms of {1e3 * step:.1f} ms", f"{keep / step:.2%}"],
        [
            f"a preview every {EVERY} steps",
            f"{1e3 * shown:.3f} ms of {1e3 * step:.1f} ms",
            f"{shown / step:.2%}",
        ],
    ]


def rates(pipe: LatentDiffusionPipeline, steps: int, batches: list[int], rounds: int) -> list[list[str]]:
    """Frames per second of an animation, and images per second of the pipeline with the same batch size."""
    rows = []
    for batch in batches:
        settings: dict[str, Any] = {"sampler": "ddim", "num_inference_steps": steps, "guidance_scale": 5.0}

        def frames(batch: int = batch, settings: dict[str, Any] = settings) -> float:
            keys = animate(pipe, [PROMPT, OTHER], 0, frames=2 * batch - 1, batch_size=batch, **settings)
            return seconds(lambda: list(keys)) / (2 * batch)

        def images(batch: int = batch, settings: dict[str, Any] = settings) -> float:
            return seconds(lambda: pipe(PROMPT, num_images_per_prompt=batch, seed=0, **settings)) / batch

        turns = alternate({"animate": frames, "pipeline": images}, rounds + 1)
        ours, theirs = (1 / statistics.median(turns[name][1:]) for name in ("animate", "pipeline"))
        rows.append([f"batch {batch}", f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"])
    return rows


def memory(sizes: list[int]) -> list[list[str]]:
    """Peak memory of new processes that write images of these sizes: in tiles of 128 pixels, and by a second pass.

    Larger images than `LARGEST_WHOLE` only in tiles: the attention of the network over all of them takes minutes.
    """
    rows = []
    with TemporaryDirectory() as folder:
        fixed = [sys.executable, "-m", "latentdiff", "generate", PROMPT, "--device", "cpu", "--steps", "1"]
        fixed += ["-o", str(Path(folder) / "x.png")]
        second, tile = ["--hires", "2", "--hires-strength", "0.5", "--hires-steps", "2"], ["--tile", "128"]
        for size in sizes:
            whole, half = ([f"--{side}={pixels}" for side in ("width", "height")] for pixels in (size, size // 2))
            ways = [[*whole, *tile], [*half, *second, *tile]] + [[*half, *second]] * (size <= LARGEST_WHOLE)
            cells = [f"{start([*fixed, *way]).peak_bytes / 2**30:.2f}" for way in ways]
            rows.append([f"{size} x {size}", *cells, *["not run"] * (3 - len(cells))])
            print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--device", default="auto", type=device_option)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="tables to make; all by default")
    given = parser.parse_args()
    pipe = LatentDiffusionPipeline.from_pretrained(given.model, device=given.device)
    call = {"prompt": PROMPT, "seed": 0, "sampler": "ddim", "num_inference_steps": given.steps, "guidance_scale": 5.0}
    head = {
        "steps": ["", "times", "ratio"],
        "rates": ["", "animate, frames a second", "pipeline, images a second", "ratio"],
        "memory": ["written, peak memory in GiB", "--tile 128", "--hires 2 --tile 128", "--hires 2"],
    }
    measure: dict[str, Callable[[], list[list[str]]]] = {
        "steps": lambda: additions(pipe, call, given.rounds),
        "rates": lambda: rates(pipe, given.steps, given.batches, given.rounds),
        "memory": lambda: memory(given.sizes),
    }
    tables = []
    for part in given.parts:
        tables.append(table(head[part], measure[part]()))
        print(tables[-1], flush=True)  # so that an interrupted run keeps its results
    body = "\n\n".join(tables)
    about = f"The bundled model, {pipe.dtype}, {given.steps} DDIM steps, guidance 5; medians of {given.rounds} rounds."
    write("_".join(["editing_emoji", *given.parts]), about, body, torch.device(given.device))


if __name__ == "__main__":
    main()
