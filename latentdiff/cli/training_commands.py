"""Declares the options of the commands for training and evaluation; the modules with their names run them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from latentdiff.cli.options import AllowPickle, Device, Model, Prediction, Unet, Vae, Variant, given, opening
from latentdiff.cli.root import app, data

PICTURES = "A folder, .zip, .tar or .parquet file, shards ({000..012}.tar, also https://) or hf://owner/name."
RESOLUTION = "Training resolution: side of the square, in pixels. [default: the model's]"
ALLOW_UPSCALE = "Largest factor by which a small picture may be enlarged. [default: 1.05]"


@app.command()
def finetune(
    folder: Annotated[str, typer.Argument(help=PICTURES)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    model: Model = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    method: Annotated[str | None, typer.Option(help="lora, dora, full or textual_inversion. [default: lora]")] = None,
    trigger: Annotated[
        str | None, typer.Option(help="Words added before every caption; with textual_inversion, the word to learn.")
    ] = None,
    init_word: Annotated[str | None, typer.Option(help="Word whose embedding initialises the new word.")] = None,
    class_prompt: Annotated[
        str | None, typer.Option(help="Prompt of the class to preserve (DreamBooth's prior).")
    ] = None,
    train_text: Annotated[bool, typer.Option("--train-text", help="Train a LoRA of the text encoder too.")] = False,
    caption_template: Annotated[
        str | None, typer.Option(help="Caption for images in a class folder {name}. [default: {name}]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: by the size of the folder]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step. [default: by the size of the model]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate. [default: by model and method]")] = None,
    resolution: Annotated[int | None, typer.Option(help=RESOLUTION)] = None,
    allow_upscale: Annotated[float | None, typer.Option(help=ALLOW_UPSCALE)] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of lora and dora. [default: 16]")] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip files that the check rejects.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the run.")] = False,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="If memory runs out, halve the batch and continue.")
    ] = False,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per GPU.")] = 1,
    mixed_precision: Annotated[
        str | None, typer.Option(help="bf16, fp16, no, or auto: bf16 unless the CPU emulates it. [default: auto]")
    ] = None,
    gradient_accumulation: Annotated[
        int | None,
        typer.Option(min=1, help="Batches per step; small batches need less memory. [default: 1]"),
    ] = None,
    caption_dropout: Annotated[
        float | None, typer.Option(help="Fraction of captions replaced by an empty one, for guidance. [default: 0.1]")
    ] = None,
) -> None:
    """Check a folder of images, then fine-tune a model on it."""
    how = opening(locals())
    from latentdiff.cli.finetune import run

    run(
        folder, output, resume, auto_batch, skip_bad, num_processes,
        base=model, base_options=how or None, method=method, trigger=trigger, init_word=init_word,
        class_prompt=class_prompt, text_encoder=train_text or None, caption_template=caption_template, steps=steps,
        batch_size=batch_size, learning_rate=learning_rate, resolution=resolution, allow_upscale=allow_upscale,
        rank=rank, seed=seed, mixed_precision=mixed_precision, gradient_accumulation=gradient_accumulation,
        caption_dropout=caption_dropout,
    )  # fmt: skip


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file; see configs/.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint of the run.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip files that the check rejects.")] = False,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="If memory runs out, halve the batch and continue.")
    ] = False,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per GPU.")] = 1,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of config files, for editors.")
    ] = False,
) -> None:
    """Train a VAE, a text encoder or a U-Net from a config file."""
    from latentdiff.errors import InputError

    if schema:
        from latentdiff.config.train import train_config

        typer.echo(json.dumps(train_config.json_schema(), indent=2))
        return
    if config is None:
        raise InputError("there is no config file; pass a YAML file, such as those in configs/")
    from latentdiff.cli.train import run

    run(config, set_ or [], resume, skip_bad, auto_batch, num_processes)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="The output folder of a run.")],
) -> None:
    """Write report.html into the folder of a run: curves, sample grids, config and data on one page."""
    from latentdiff.cli.report import run

    run(run_folder)


@app.command()
def evaluate(
    real: Annotated[str, typer.Option(help=f"Real images that no model was trained on. {PICTURES}")],
    generated: Annotated[
        str | None, typer.Option(help="Generated images; by default the model generates them.")
    ] = None,
    model: Model = None,
    num: Annotated[int | None, typer.Option(help="How many captions of --real to use. [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's, else 25]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 or less is none. [default: the model's, else 5]")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, as in generate. [default: the model's]")] = None,
    features: Annotated[str, typer.Option(help="efficientnet-lite0 or clip.")] = "efficientnet-lite0",
    weights: Annotated[str | None, typer.Option(help="Weights of clip: a folder or hub id.")] = None,
    judge: Annotated[str | None, typer.Option(help="CLIP folder, text_encoder run or hub id, for captions.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Any of frechet, kernel, precision-recall, density-coverage, class-score, sliced-wasserstein, "
            "alignment, retrieval; separated by commas. [default: all that can be computed]"
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples for each 95 % interval.")] = 100,
    seed: Annotated[int, typer.Option(help="Image k uses seed + k.")] = 0,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML page to write, with numbers and images.")] = None,
    vae: Annotated[str | None, typer.Option(help="VAE or model: measure its reconstruction of --real.")] = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
) -> None:
    """Compare generated images, from a folder or a model, with real ones."""
    from latentdiff.cli.evaluate import Request, run

    options = {"model": model, "num": num, "steps": steps, "guidance_scale": guidance_scale, "sampler": sampler}
    how = {"unet": unet, "variant": variant, "prediction_type": prediction_type, "allow_pickle": allow_pickle}
    of_model = given(**options, **how)
    files = (output, html, vae)
    run(Request(real, generated, features, weights, judge, metrics, resamples, seed, device, *files, of_model))


@data.command()
def check(
    folder: Annotated[str, typer.Argument(help=PICTURES)],
    model: Annotated[
        str | None, typer.Option(help="Model whose size and token limit apply. [default: the bundled one]")
    ] = None,
    caption_template: Annotated[
        str | None, typer.Option(help="Caption for images in a class folder {name}. [default: {name}]")
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="Words that will precede every caption.")] = None,
    resolution: Annotated[int | None, typer.Option(help=RESOLUTION)] = None,
    allow_upscale: Annotated[float | None, typer.Option(help=ALLOW_UPSCALE)] = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the complete result as JSON.")] = False,
) -> None:
    """Check every image and caption of a folder; exit code 1 if there are errors. Nothing is changed."""
    how = opening(locals())
    options = {"caption_template": caption_template, "prefix": trigger}
    sizes = {"resolution": resolution, "allow_upscale": allow_upscale}
    from latentdiff.cli.data import run

    raise typer.Exit(run(folder, model, as_json, how, **options, **sizes))
