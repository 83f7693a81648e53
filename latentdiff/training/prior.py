"""Pictures of a class as the base model draws it, for prior preservation."""

from pathlib import Path

import torch
from tqdm import tqdm

from latentdiff.checkpoints.folder import Components
from latentdiff.config.train import FineTuneConfig, PriorConfig
from latentdiff.data.archives import open_container
from latentdiff.data.layouts import Row
from latentdiff.files import atomic_path
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.training.processes import process_state

BATCH = 8


def prior_rows(parts: Components, config: FineTuneConfig, prior: PriorConfig) -> list[Row]:
    """The class pictures, drawn first where they are missing: picture k always from seed k."""
    folder = prior.folder or config.run.output / "prior"
    names = [f"{k:05d}.png" for k in range(prior.images)]
    with process_state().main_process_first():
        missing = [k for k, name in enumerate(names) if not (folder / name).exists()]
        if missing and process_state().is_main_process:
            _draw(parts, config, prior.prompt, folder, missing)
    container = open_container(folder)
    return [Row(container, name, (prior.prompt,), weight=prior.weight) for name in names]


def _draw(parts: Components, config: FineTuneConfig, prompt: str, folder: Path, missing: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = LatentDiffusionPipeline(parts, process_state().device, torch.float32)
    size = config.data.resolution
    for start in tqdm(range(0, len(missing), BATCH), desc="drawing class pictures"):
        seeds = missing[start : start + BATCH]
        made = pipeline(
            [prompt] * len(seeds), seed=seeds, height=size, width=size, num_inference_steps=config.sample_steps,
            guidance_scale=config.guidance_scale, sampler="ddim",
        )  # fmt: skip
        for k, image in zip(seeds, made.images, strict=True):
            with atomic_path(folder / f"{k:05d}.png") as path:
                image.save(path, format="PNG")
