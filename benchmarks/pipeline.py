"""Time generating pictures from the same model folder, ours and other packages': `python -m benchmarks.pipeline`."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.contest import Contest, Entry, run_contest
from benchmarks.machine import device_option, free_memory
from benchmarks.report import seconds_cells, table, write
from benchmarks.training_shapes import Shape
from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import Components, write_pipeline
from latentdiff.checkpoints.locate_model import locate
from latentdiff.config.base import Config
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.runtime.device import DTYPES
from latentdiff.sampling.schedule import Schedule
from latentdiff.text.text_conditioner import TextConditioner

PROMPT = "a red apple"
PACKAGES = ("diffusers", "latentdiff", "OpenVINO-GenAI")
SIDES = [f"{package} {dtype}" for dtype in ("float32", "bfloat16") for package in PACKAGES]
BASE = SIDES[0]


class Picture(Config):
    """The picture to generate. size: in pixels; None for that of the model. threads: None for all."""

    folder: Path
    device: str = "cpu"
    steps: int = 20
    batch: int = 1
    size: int | None = None
    threads: int | None = None


def build(name: str, settings: str) -> Callable[[], Any]:
    """The call that `benchmarks.worker` times. name: such as `latentdiff float32` or `diffusers bfloat16 compile`."""
    package, dtype, *compiled = name.split()
    picture = Picture.model_validate_json(settings)
    torch.set_num_threads(picture.threads or torch.get_num_threads())
    if package == "OpenVINO-GenAI":
        return genai(picture, dtype)
    return (ours if package == "latentdiff" else theirs)(picture, dtype, bool(compiled))


def ours(picture: Picture, dtype: str, compiled: bool) -> Callable[[], Any]:
    pipe = LatentDiffusionPipeline.from_pretrained(
        picture.folder, device=picture.device, dtype=dtype, optimize="compile" if compiled else "auto"
    )
    return lambda: pipe(PROMPT, seed=0, sampler="ddim", **_options(picture))


def theirs(picture: Picture, dtype: str, compiled: bool) -> Callable[[], Any]:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(picture.folder, torch_dtype=DTYPES[dtype]).to(
        picture.device
    )
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet = torch.compile(pipe.unet, mode="max-autotune", fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode="max-autotune", fullgraph=True)
    return lambda: pipe(PROMPT, **_options(picture))


def genai(picture: Picture, dtype: str) -> Callable[[], Any]:
    from benchmarks.genai import open_pipeline

    pipe, options = open_pipeline(picture.folder, dtype), _options(picture)
    return lambda: pipe.generate(PROMPT, **{key: value for key, value in options.items() if value is not None})


def _options(picture: Picture) -> dict[str, Any]:
    options = {"num_inference_steps": picture.steps, "guidance_scale": 5.0, "num_images_per_prompt": picture.batch}
    return options | {"height": picture.size, "width": picture.size}


def write_random_model(shape: Shape, folder: Path) -> None:
    """Write a folder of random bfloat16 weights that both packages can open."""
    torch.manual_seed(0)
    text = TextConditioner([shape.tokenizer], [shape.text_encoder()]).to(torch.bfloat16)
    unet, vae = UNet2DConditionModel(shape.unet), AutoencoderKL(shape.vae)
    for model in (unet, vae):
        model.to(torch.bfloat16)
    write_pipeline(Components(unet, vae, text, Schedule(shape.schedule)), folder)


def measure(picture: Picture, sides: list[str], rounds: int, limit: float | None = None) -> Contest:
    stored = sum(path.stat().st_size for path in picture.folder.rglob("*.safetensors"))
    # Weights in the precision of the computation, a second copy while they are read or packed, and activations.
    needs = {side: 2 * stored * (2 if "float32" in side else 1) + 2**30 for side in sides}
    entries = {side: Entry("benchmarks.pipeline", picture.model_dump_json(), need) for side, need in needs.items()}
    return run_contest(entries, rounds, free_memory(torch.device(picture.device)), limit=limit)


def tabulate(contest: Contest, base: str = BASE) -> str:
    header = ["", "median s", "min s", f"of {base}", "peak memory GiB"]
    rows = []
    for name, turns in contest.turns.items():
        peak = max(turn.peak_bytes for turn in turns) / 2**30
        rows.append([name, *seconds_cells(contest.turns, name, base), f"{peak:.2f}"])
    return table(header, rows + [[name, note, "", "", ""] for name, note in contest.notes.items()])


def chosen_folder(model: str | None, shape: str | None, kept: ExitStack) -> Path:
    """The folder of a model, or a temporary one of random weights, which exists while `kept` is open."""
    if shape is None:
        return locate(model)
    folder = Path(kept.enter_context(TemporaryDirectory())) / shape
    write_random_model(Shape(), folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--shape", choices=["sd15"], help="use random weights of this shape instead of a model")
    parser.add_argument("--size", type=int, help="side of the square in pixels; by default that of the model")
    parser.add_argument("--device", default="auto", type=device_option)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with ExitStack() as kept:
        folder = chosen_folder(given.model, given.shape, kept)
        picture = Picture(folder=folder, device=given.device, steps=given.steps, batch=given.batch, size=given.size)
        contest = measure(picture, given.sides, given.rounds)
    size = f"{given.size}x{given.size} pixels" if given.size else "its default size"
    about = f"{folder.name}, {size}, {given.steps} DDIM steps, guidance 5, batch {given.batch}. "
    what = f"pipeline_{folder.name}{f'_{given.size}' if given.size else ''}_batch{given.batch}"
    write(what, about + contest.about(given.rounds), tabulate(contest), torch.device(given.device))


if __name__ == "__main__":
    main()
