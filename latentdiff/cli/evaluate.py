"""`latentdiff evaluate`: compute metrics, print them, and write them as JSON and HTML."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentdiff.checkpoints.components import build, open_vae
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.cli.options import NAMES as OPEN_NAMES
from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent
from latentdiff.metrics.clip import Clip, open_clip
from latentdiff.metrics.evaluate import LACKS, Evaluation, check_counts, check_judge, choose_metrics, evaluate
from latentdiff.metrics.features import feature_network
from latentdiff.metrics.pictures import (
    FolderPictures,
    ModelPictures,
    Pictures,
    choose_rows,
    read_pictures,
    short_sides,
    size_notes,
)
from latentdiff.metrics.reconstruction import reconstruct
from latentdiff.metrics.registry import METRICS
from latentdiff.metrics.write_results import summary, write_html, write_json
from latentdiff.models.vae import AutoencoderKL
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.runtime.device import pick_device


@dataclass(frozen=True)
class Request:
    """Command-line options. of_model: the given options for generation."""

    real: str
    generated: str | None
    features: str
    weights: str | None
    judge: str | None
    metrics: str | None
    resamples: int
    seed: int
    device: str
    output: Path | None
    html: Path | None
    vae: str | None
    of_model: dict[str, Any]


def run(request: Request) -> None:
    """Check the options, compare the two sets, print the values and write the files."""
    for path in (request.output, request.html):
        if path is not None:
            check_writable_parent(path)
    if not 0 <= request.seed < 2**31:
        raise InputError(f"--seed {request.seed} must be from 0 to {2**31 - 1}; try 0")
    result = _vae_alone(request) if request.vae is not None else _two_sets(request)
    print(summary(result))
    if request.output is not None:
        write_json(result, request.output)
    if request.html is not None:
        write_html(result, request.html)


def _two_sets(request: Request) -> Evaluation:
    names = None if request.metrics is None else [name.strip() for name in request.metrics.split(",")]
    chosen = choose_metrics(names, set(LACKS))  # names are checked before anything is loaded
    check_judge(chosen, request.judge)
    if request.weights is not None and request.features != "clip":
        raise InputError(f"--weights {request.weights} requires --features clip; add it, or omit the weights")
    sets = _of_folder if request.generated is not None else _of_model
    generated, real = sets(request)
    check_counts(names or [], len(generated), len(real))
    of_network = {need for name in chosen for need in METRICS[name].needs} & {"features", "logits"}
    network = feature_network(request.features, request.weights, request.device) if of_network else None
    judge = _judge(request)
    result = evaluate(generated, real, network, judge, names, request.seed, request.resamples)
    return _with_size_notes(result, generated, real)


def _vae_alone(request: Request) -> Evaluation:
    """Evaluate the reconstructions of a VAE, given by its own folder or that of a pipeline."""
    assert request.vae is not None
    of_model = {key: value for key, value in request.of_model.items() if key != "allow_pickle"}
    others = {"generated": request.generated, "judge": request.judge, "metrics": request.metrics, **of_model}
    for name, value in others.items():
        if value is not None:
            raise InputError(f"--vae cannot be combined with --{name.replace('_', '-')}; omit one of them")
    allow_pickle = bool(request.of_model.get("allow_pickle"))
    vae = build(open_vae(request.vae, OpenOptions(allow_pickle=allow_pickle)), torch.float32)
    if not isinstance(vae, AutoencoderKL):
        raise InputError(f"{request.vae} is a pixel-space model without a VAE; use another model")
    vae.to(pick_device(request.device))
    real = FolderPictures(request.real, read_pictures(request.real), vae.config.sample_size)
    network = feature_network(request.features, request.weights, request.device)
    return _with_size_notes(reconstruct(vae, real, str(request.vae), network, request.seed, request.resamples), real)


def _with_size_notes(result: Evaluation, *sets: Pictures) -> Evaluation:
    notes = [note for pictures in sets if isinstance(pictures, FolderPictures) for note in size_notes(pictures)]
    return replace(result, notes=[*notes, *result.notes])


def _of_folder(request: Request) -> tuple[Pictures, Pictures]:
    assert request.generated is not None
    if request.of_model:
        option = next(iter(request.of_model)).replace("_", "-")
        raise InputError(f"--{option} applies to a model and cannot be combined with --generated; omit one of them")
    rows, others = read_pictures(request.generated), read_pictures(request.real)
    resolution = min(short_sides(rows))
    return FolderPictures(request.generated, rows, resolution), FolderPictures(request.real, others, resolution)


def _of_model(request: Request) -> tuple[Pictures, Pictures]:
    options = request.of_model
    rows = choose_rows(request.real, options.get("num"), request.seed)
    how = {name: options[name] for name in OPEN_NAMES if name in options}
    pipe = LatentDiffusionPipeline.from_pretrained(options.get("model"), device=request.device, **how)
    real = FolderPictures(request.real, rows, pipe.default_size)
    assert real.captions is not None
    settings = pipe.generation.with_given(
        num_inference_steps=options.get("steps"),
        guidance_scale=options.get("guidance_scale"),
        sampler=options.get("sampler"),
    )
    return ModelPictures(pipe, real.captions, settings, request.seed), real


def _judge(request: Request) -> Clip | None:
    """The CLIP model of `--judge`, or the one whose features are compared."""
    place = request.judge or (request.weights if request.features == "clip" else None)
    return None if place is None else open_clip(place, pick_device(request.device))
