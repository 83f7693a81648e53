"""Peak memory of generating a picture, ours and diffusers', in new processes: `python -m benchmarks.memory`.

The need is the number of bytes of all weights of the U-Net, the VAE and the text encoders in the precision of the
computation, plus the activations: the peak of the bytes of other tensors that are alive at the same time while the
plain modules (`optimize="off"`) generate the picture, counted after every operation. The need excludes temporary memory
inside operations, and the memory of Python and its libraries before a model is loaded, which has its own row.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.coldstart import PROMPT, start
from benchmarks.pipeline import chosen_folder
from benchmarks.report import table, write
from benchmarks.turns import Turn, alternate, median
from latentdiff import LatentDiffusionPipeline

LIBRARIES = "Python and libraries only"
SCRIPT = """
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({folder!r}, torch_dtype=torch.{dtype})
pipe({prompt!r}, num_inference_steps={steps}, height={size}, width={size}).images[0].save({output!r})
"""


class Alive(TorchDispatchMode):
    """Tracks the bytes of live tensors that operations created, except views of `weights`. peak: the maximum."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            if storage._cdata not in self.weights:
                self.storages.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.storages = {key: known for key, known in self.storages.items() if not known[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return out


def need(folder: Path, dtype: str, size: int | None) -> tuple[int, int]:
    """Bytes of weights and of activations, as defined above. Several steps need no more memory than one."""
    pipe = LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype=dtype, optimize="off")
    weights = [weight for part in (pipe.denoiser, pipe.vae, pipe.text) for weight in part.parameters()]
    with Alive(weights) as alive:
        pipe(PROMPT, num_inference_steps=1, height=size, width=size)
    return sum(weight.nbytes for weight in weights), alive.peak


def commands(folder: Path, dtype: str, steps: int, size: int | None, output: Path) -> dict[str, list[str]]:
    """The commands to run, each with this Python."""
    options = ["--model", str(folder), "--device", "cpu", "--dtype", dtype, "--steps", str(steps), "-o", str(output)]
    options += ["--height", str(size), "--width", str(size)] if size else []
    ours = [sys.executable, "-m", "latentdiff", "generate", PROMPT, *options]
    found = {
        LIBRARIES: [sys.executable, "-c", "import latentdiff.cli.generate, latentdiff.pipeline"],
        "latentdiff": ours,
        "latentdiff --low-memory": [*ours, "--low-memory"],
    }
    if find_spec("diffusers"):
        values = {"folder": str(folder), "dtype": dtype, "prompt": PROMPT, "steps": steps, "size": size}
        found["diffusers"] = [sys.executable, "-c", SCRIPT.format(**values, output=str(output))]
    return found


def measure(folder: Path, dtype: str, steps: int, size: int | None, rounds: int) -> dict[str, list[Turn]]:
    with TemporaryDirectory() as temporary:
        listed = commands(folder, dtype, steps, size, Path(temporary) / "picture.png")
        return alternate({name: partial(start, command) for name, command in listed.items()}, rounds)


def tabulate(turns: dict[str, list[Turn]], needed: int) -> str:
    header = ["", "median s", "peak memory GiB", "relative to need", "without libraries, relative to need"]
    libraries, rows = max(turn.peak_bytes for turn in turns[LIBRARIES]), []
    for name, own in turns.items():
        peak = max(turn.peak_bytes for turn in own)
        ratios = ["", ""] if name == LIBRARIES else [f"{part / needed:.2f}" for part in (peak, peak - libraries)]
        rows.append([name, f"{median(own):.4g}", f"{peak / 2**30:.3f}", *ratios])
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--shape", choices=["sd15"], help="use random weights of this shape instead of a model")
    parser.add_argument("--size", type=int, help="side of the square in pixels; by default that of the model")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with ExitStack() as kept:
        folder = chosen_folder(given.model, given.shape, kept)
        weights, activations = need(folder, given.dtype, given.size)
        turns = measure(folder, given.dtype, given.steps, given.size, given.rounds)
    size = f"{given.size}x{given.size} pixels" if given.size else "its default size"
    about = (
        f"One picture of {folder.name} written to a file, {given.dtype}, {size}, {given.steps} steps, by a new "
        f"process. Need: {weights / 2**30:.3f} GiB of weights, {activations / 2**30:.3f} GiB of "
        "activations."
    )
    what = f"memory_{folder.name}{f'_{given.size}' if given.size else ''}_{given.dtype}"
    write(what, about, tabulate(turns, weights + activations), torch.device("cpu"))


if __name__ == "__main__":
    main()
