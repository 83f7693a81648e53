"""Bits per pixel of held-out digits under a model: `python -m examples.digits.likelihood runs/digits`."""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from examples.command import exit_code
from examples.digits.prepare import LEVELS, to_bytes
from latentdiff import LatentDiffusionPipeline
from latentdiff.config.base import load_yaml
from latentdiff.config.train import UNetTrainConfig, train_config
from latentdiff.data.dataset import load_pixels, read_parts
from latentdiff.data.layouts import DataRow
from latentdiff.denoiser import NetworkDenoiser
from latentdiff.errors import InputError
from latentdiff.files import atomic_path, check_writable_parent
from latentdiff.images.image_grid import image_grid
from latentdiff.sampling.loop import Denoiser
from latentdiff.sampling.probability_flow import flow, level_at, log_likelihood
from latentdiff.sampling.schedule import Schedule

COLUMNS, SHOWN, ENLARGED = 16, 64, 6
TOLERANCE = 1e-4
AT_ONCE = 256
NOISE = 1 / 6  # of the distance between two grey levels; 0.3 % of pixels then round to another level


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of a run that trained a model of grey pixels")
    parser.add_argument("--levels", type=int, default=LEVELS, help="grey levels of the pictures; 256 for MNIST")
    parser.add_argument("--sheet", type=Path, help="write a PNG with samples of the probability flow")
    arguments = parser.parse_args()
    return exit_code(measure, arguments.run, arguments.levels, arguments.sheet)


def measure(run: Path, levels: int, sheet: Path | None) -> None:
    """Print bits per pixel of the run's held-out pictures under the model, and under independent pixels."""
    if sheet is not None:
        check_writable_parent(sheet)
    config = load_yaml(train_config, run / "config.yaml")
    if not isinstance(config, UNetTrainConfig) or config.vae is not None or config.model.in_channels != 1:
        raise InputError(f"{run} is not a model of grey pixels; train one with configs/digits")
    if levels < 2:
        raise InputError(f"--levels {levels} must be at least 2; pass the number of grey levels of the pictures")
    pipe = LatentDiffusionPipeline.from_pretrained(run / "model", device="cpu", dtype="float32", optimize="off")
    parts = read_parts(config.data)
    if not parts[1]:
        raise InputError(f"{run} has no held-out pictures; train with data.held_out")
    train, held_out = (grey_levels(rows, config.data.resolution, levels) for rows in parts)
    captions = ["" if config.caption_dropout == 1 else row.captions[0] for row in parts[1]]
    found = torch.cat(
        [
            bits(with_words(pipe, captions[k : k + AT_ONCE]), pipe.schedule, held_out[k : k + AT_ONCE], levels, k)
            for k in range(0, len(held_out), AT_ONCE)
        ]
    )
    error = found.std().item() / len(found) ** 0.5
    print(f"{found.mean():.3f} +- {error:.3f} bits per pixel (upper bound) over {len(found)} held-out pictures")
    print(f"{independent_bits(train, held_out, levels):.3f} bits per pixel if pixels were independent")
    if sheet is not None:
        shown = (captions * SHOWN)[:: max(1, len(captions) // SHOWN)][:SHOWN]
        write_sheet(with_words(pipe, shown), pipe, sheet)


def grey_levels(rows: list[DataRow], resolution: int, levels: int) -> Tensor:
    """The grey level of each pixel, integers [N, 1, H, W]."""
    pixels = torch.stack([load_pixels(row, resolution) for row in rows])[:, :1]
    return ((pixels + 1) / 2 * (levels - 1)).round().long()


def with_words(pipe: LatentDiffusionPipeline, captions: list[str]) -> Denoiser:
    """The denoiser for a batch with these captions."""
    network = NetworkDenoiser(pipe.denoiser, pipe.schedule, torch.float32)
    return partial(network, conditioning=pipe.text.encode(captions))


def bits(denoiser: Denoiser, schedule: Schedule, grey: Tensor, levels: int, seed: int = 0) -> Tensor:
    """An upper bound of -log2 P(picture) per pixel, [N], by variational dequantisation with Gaussian noise.

    -log P(v) <= E[log q(z|v) - log p(z) - log P(v|z)] for integer levels v (Ho et al. 2019, sec. 3.1). q adds the noise
    of the timestep where sigma / alpha is `NOISE` of a level, p is the flow's density there, and P(v|z) is each pixel's
    posterior over all levels under a uniform prior (Kingma et al. 2021, sec. 3.3).
    """
    generator = torch.Generator().manual_seed(seed)
    level = level_at(schedule, _timestep(schedule, NOISE * 2 / (levels - 1)))
    values = torch.from_numpy(to_bytes(torch.arange(levels).numpy(), levels)).double() / 127.5 - 1
    noise = torch.randn(grey.shape, generator=generator, dtype=torch.float64)
    z = level.alpha * values[grey] + level.sigma * noise
    q = -0.5 * noise.square() - math.log(level.sigma * math.sqrt(2 * math.pi))
    distance = ((z[..., None] - level.alpha * values) / level.sigma).square()
    decoder = (-0.5 * distance).log_softmax(-1).gather(-1, grey[..., None])[..., 0]
    probes = torch.randint(0, 2, (1, *z.shape), generator=generator).double() * 2 - 1
    prior = log_likelihood(denoiser, schedule, z, probes, level.timestep, TOLERANCE)
    nats = (q - decoder).flatten(1).sum(1) - prior
    return nats / (grey[0].numel() * math.log(2))


def _timestep(schedule: Schedule, ratio: float) -> float:
    """The first timestep at which sigma / alpha is at least `ratio`."""
    return float((schedule.sigmas < ratio * schedule.alphas).sum())


def independent_bits(train: Tensor, held_out: Tensor, levels: int) -> float:
    """Bits per pixel if pixels are independent, with level frequencies of `train` plus one (Laplace smoothing)."""
    counts = torch.stack([(train == level).sum(0) for level in range(levels)]) + 1.0  # [levels, 1, H, W]
    chances = counts / counts.sum(0)
    return -chances.gather(0, held_out).log2().mean().item()


def write_sheet(denoiser: Denoiser, pipe: LatentDiffusionPipeline, path: Path) -> None:
    """Write `SHOWN` samples of the probability flow, enlarged."""
    size, last = pipe.denoiser.default_size, pipe.schedule.config.num_train_timesteps - 1
    noise = torch.randn(SHOWN, 1, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = pipe.decode(flow(denoiser, pipe.schedule, noise, last, 0, TOLERANCE))
    grid = image_grid(torch.nn.functional.pad(pixels, (1, 1, 1, 1)), COLUMNS)  # separated by grey
    with atomic_path(path) as partial:
        grid.resize((grid.width * ENLARGED, grid.height * ENLARGED), 0).save(partial)


if __name__ == "__main__":
    sys.exit(main())
