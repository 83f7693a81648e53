"""Measure the speed and the error of approximations: `python -m benchmarks.approximate`.

Compares pictures with and without approximations from the same seeds and prompts; with `--shape`, one U-Net call.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import networks
from benchmarks.machine import device_option
from benchmarks.report import seconds_cells, table, write
from benchmarks.turns import Turn, alternate
from benchmarks.worker import take
from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.locate_model import locate
from latentdiff.metrics import feature_network, frechet_distance, psnr
from latentdiff.metrics.pictures import AT_ONCE, FolderPictures, choose_rows, read_pictures
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime import deepcache
from latentdiff.runtime.approximate import KNOWN, approximate
from latentdiff.runtime.device import pick_dtype
from latentdiff.runtime.optimize import prepare

EXACT = "exact"
BETWEEN = "reuse, an intermediate step"
PROMPTS = ["a red apple", "a cat face", "a rocket", "a yellow taxi", "a green tree", "a slice of pizza", "a blue heart"]


@dataclass(frozen=True)
class Setting:
    """Names of approximations, the interval at which reuse computes all levels, and the steps if they differ."""

    names: tuple[str, ...]
    every: int = deepcache.EVERY
    steps: int | None = None

    def __str__(self) -> str:
        if self.steps:
            return f"{EXACT}, {self.steps} steps"
        return " + ".join(f"{n}, every {self.every}" if n == "reuse" else n for n in self.names) or EXACT


@dataclass(frozen=True)
class Inputs:
    """The pictures to generate: one for each of `prompts`, with `steps` of the default sampler and default guidance."""

    folder: Path
    device: str
    steps: int
    prompts: list[str]


class Maker:
    """A pipeline that generates pictures with one setting."""

    def __init__(self, inputs: Inputs, setting: Setting) -> None:
        self.inputs, self.setting = inputs, setting
        self.pipe = LatentDiffusionPipeline.from_pretrained(inputs.folder, inputs.device, approximate=setting.names)
        self.pipe.options = replace(self.pipe.options, every=setting.every)

    def latents(self, prompts: list[str], seed: int = 0) -> Tensor:
        made: Tensor = self.pipe(
            prompts, num_inference_steps=self.setting.steps or self.inputs.steps, guidance_scale=5.0, sampler="ddim",
            seed=seed, output_type="latent",
        ).images  # fmt: skip
        return made

    def one(self) -> Tensor:
        return self.pipe.decode(self.latents(self.inputs.prompts[:1]))

    @torch.no_grad()
    def all(self) -> tuple[Tensor, Tensor]:
        """Latents and uint8 pixels of all pictures."""
        prompts = self.inputs.prompts
        latents = [self.latents(prompts[k : k + AT_ONCE], k) for k in range(0, len(prompts), AT_ONCE)]
        pixels = [((self.pipe.decode(part) / 2 + 0.5) * 255).round().to(torch.uint8) for part in latents]
        return torch.cat(latents), torch.cat(pixels)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def embed(pictures: list[Tensor], device: str) -> Tensor:
    network = feature_network(device=device)
    with torch.no_grad():
        return torch.cat([network.embed(part)["features"].cpu() for part in pictures])


def turns(call: Callable[[], Any]) -> Callable[[], Turn]:
    return lambda: Turn(**take(call, ""))


def compare_pictures(inputs: Inputs, settings: list[Setting], rounds: int, real: Path | None) -> str:
    """A table row for each setting: times, and the distances of its pictures to the exact ones and to real ones."""
    makers = {str(setting): Maker(inputs, setting) for setting in settings}
    alternate({name: maker.one for name, maker in makers.items()}, 1)
    seconds = alternate({name: turns(maker.one) for name, maker in makers.items()}, rounds)
    exact, exact_pixels = makers[EXACT].all()
    shown = embed(list(exact_pixels.split(AT_ONCE)), inputs.device)
    there = None
    if real is not None:
        rows = read_pictures(real)
        there = embed(list(FolderPictures(real, rows, exact_pixels.shape[-1]).batches()), inputs.device)
    lines = []
    for name, maker in makers.items():
        latents, pixels = maker.all()
        features = embed(list(pixels.split(AT_ONCE)), inputs.device)
        cells = [f"{relative_error(latents, exact):.3f}", f"{relative_error(pixels.float(), exact_pixels.float()):.3f}"]
        decibels = math.inf if torch.equal(pixels, exact_pixels) else float(psnr(pixels, exact_pixels).mean())
        cells += [f"{decibels:.1f}", f"{frechet_distance(features, shown):.2f}"]
        cells += [] if there is None else [f"{frechet_distance(features, there):.1f}"]
        lines.append([name, *seconds_cells(seconds, name, EXACT), *cells])
    header = ["", "median s", "min s", f"of {EXACT}", "error of latents", "of pixels", "PSNR dB", "Frechet to exact"]
    return table([*header, *(["Frechet to real"] if real else [])], lines)


def load(network: networks.UNet, state: dict[str, Tensor], *names: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        model = network.network()
    model.load_state_dict(state, assign=True)
    prepare(model.eval())
    approximate(model, names)
    return model


def compare_calls(network: networks.UNet, dtype: torch.dtype, names: Sequence[str], rounds: int) -> str:
    """Times and errors of one U-Net call, exact and with each of `names`; for reuse, of the call that skips levels."""
    state = networks.weights(network, dtype)
    runs: dict[str, Callable[..., Tensor]] = {EXACT: (exact := load(network, state))}
    runs |= {name: load(network, state, name) for name in names if name != "reuse"}
    runs |= {BETWEEN: deepcache.DeepCacheUNet(exact, every=2**62)} if "reuse" in names else {}
    sample, timesteps, text = network.inputs()
    given = (sample.to(dtype), timesteps[:1], Conditioning(text.to(dtype)))
    calls = {name: partial(run, *given) for name, run in runs.items()}
    outputs = {name: call().float() for name, call in calls.items()}
    seconds = alternate({name: turns(call) for name, call in calls.items()}, rounds)
    rows = []
    for name in calls:
        error = "" if name == BETWEEN else f"{relative_error(outputs[name], outputs[EXACT]):.4f}"
        rows.append([name, *seconds_cells(seconds, name, EXACT), error])
    return table(["", "median s", "min s", f"of {EXACT}", "relative error"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--shape", choices=["sd15", "emoji"], help="time one U-Net call with random weights instead")
    parser.add_argument("--latents", type=int, help="with --shape: height and width")
    parser.add_argument("--device", default="auto", type=device_option)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--every", type=int, nargs="+", default=[deepcache.EVERY], help="intervals of reuse to compare")
    parser.add_argument(
        "--fewer", type=int, nargs="*", default=[], help="also generate exact pictures with these numbers of steps"
    )
    parser.add_argument("--names", nargs="*", default=KNOWN, choices=KNOWN)
    parser.add_argument("--real", type=Path, help="captioned held-out pictures, whose captions are used as prompts")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    device = torch.device(given.device)
    what = "_".join(["approximate", *([] if given.names == KNOWN else given.names)])
    if given.shape:
        network, dtype = networks.unet(given.shape, given.latents, device=given.device), pick_dtype("auto", device)
        with torch.no_grad():
            body = compare_calls(network, dtype, given.names, given.rounds)
        side = network.latents
        about = f"One U-Net call, {given.shape} with random weights, batch 2, {side}x{side} latents, {dtype}."
        write(f"{what}_{given.shape}_{network.latents}", about, body, device)
        return
    folder = locate(given.model)
    prompts = (PROMPTS * given.pictures)[: given.pictures]
    if given.real:
        prompts = [row.captions[0] for row in choose_rows(given.real, given.pictures, seed=0)]
    settings = [Setting(()), *(Setting((), steps=steps) for steps in given.fewer)]
    settings += [Setting(("reuse",), n) for n in given.every if "reuse" in given.names]
    settings += [Setting(("int8",)), Setting(("reuse", "int8"))] if "int8" in given.names else []
    body = compare_pictures(Inputs(folder, given.device, given.steps, prompts), settings, given.rounds, given.real)
    about = (
        f"{folder.name}: seconds of one picture of {given.steps} DDIM steps, guidance 5, in turns; errors and features "
        f"of {given.pictures} pictures, compared with exact ones from the same seeds."
    )
    write(f"{what}_{folder.name}", about, body, device)


if __name__ == "__main__":
    main()
