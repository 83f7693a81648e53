"""Peak memory of training a LoRA, ours and with diffusers and peft: `python -m benchmarks.finetune_memory`.

Random weights of Stable Diffusion 1.5's shape, read from a folder like those of users. `benchmarks.finetune_sides`
describes both sides; in new processes, both take a few steps of one picture, in bfloat16 with LoRA weights in float32.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.finetune_sides import Settings, run_side
from benchmarks.pipeline import chosen_folder
from benchmarks.report import table, write
from benchmarks.training_shapes import Shape, write_pictures

SIDES = ("diffusers", "ours")


def measure(base: Path, shape: Shape, settings: Settings) -> dict[str, dict[str, float]]:
    """The result of each side."""
    with TemporaryDirectory() as temporary:
        pictures = Path(temporary) / "pictures"
        write_pictures(shape, pictures)
        common = {"base": str(base), "folder": pictures, "batch_size": 1, "resolution": shape.resolution}
        return {
            side: run_side(side, settings.model_copy(update=common | {"output": Path(temporary) / side}))
            for side in SIDES
        }


def tabulate(found: dict[str, dict[str, float]]) -> str:
    base = found["diffusers"]["peak_bytes"]
    rows = [
        [side, f"{own['peak_bytes'] / 2**30:.2f} GiB", f"{own['peak_bytes'] / base:.2f}"] for side, own in found.items()
    ]
    return table(["", "peak memory", "of diffusers"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents")
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    with ExitStack() as kept:
        base = chosen_folder(None, "sd15", kept)
        shape = Shape(latents=given.latents)
        found = measure(base, shape, Settings(folder=base, output=base, steps=given.steps))
    side = shape.resolution
    about = f"LoRA of rank 16 on the shape of Stable Diffusion 1.5, {side}x{side} pixels, batch 1, {given.steps} steps."
    write(f"finetune_memory_sd15_{side}", about, tabulate(found), torch.device("cpu"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
