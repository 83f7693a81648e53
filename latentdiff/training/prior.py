"""Pictures of a class as the base model draws it, for prior preservation."""

import hashlib
import json
from pathlib import Path

from tqdm import tqdm

from latentdiff.checkpoints.components import Components
from latentdiff.config.train import FineTuneConfig, PriorConfig
from latentdiff.data.archives import open_container
from latentdiff.data.layouts import Row
from latentdiff.files import atomic_path
from latentdiff.model_hash import hash_model
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.training.base import base_model
from latentdiff.training.frozen import autocast
from latentdiff.training.processes import process_state

BATCH = 8
SAMPLER = "ddim"


def prior_rows(parts: Components, config: FineTuneConfig, prior: PriorConfig) -> list[Row]:
    """The class images, generated first where they are missing: image k always from seed k.

    Images of another prompt, base model, size or sampling setting are in another subfolder, named by a hash of these.
    """
    folder = (prior.folder or config.run.output / "prior") / _settings_hash(config, prior)
    names = [f"{k:05d}.png" for k in range(prior.images)]
    with process_state().main_process_first():
        missing = [k for k, name in enumerate(names) if not (folder / name).exists()]
        if missing and process_state().is_main_process:
            _draw(parts, config, prior.prompt, folder, missing)
    container = open_container(folder)
    return [Row(container, name, (prior.prompt,), weight=prior.weight) for name in names]


def _settings_hash(config: FineTuneConfig, prior: PriorConfig) -> str:
    model = hash_model(base_model(config))
    settings = [prior.prompt, model, config.data.resolution, config.sample_steps, config.guidance_scale, SAMPLER]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def _draw(parts: Components, config: FineTuneConfig, prompt: str, folder: Path, missing: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device = process_state().device
    pipeline = LatentDiffusionPipeline(parts, device, dtype=None)
    size = config.data.resolution
    for start in tqdm(range(0, len(missing), BATCH), desc="generating class images"):
        seeds = missing[start : start + BATCH]
        with autocast(config.run.mixed_precision, device):
            made = pipeline(
                [prompt] * len(seeds), seed=seeds, height=size, width=size, num_inference_steps=config.sample_steps,
                guidance_scale=config.guidance_scale, sampler=SAMPLER,
            )  # fmt: skip
        for k, image in zip(seeds, made.images, strict=True):
            with atomic_path(folder / f"{k:05d}.png") as path:
                image.save(path, format="PNG")
