"""The commands and their options. Nothing slow is imported before a command runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

import latentdiff
from latentdiff.cli.options import AllowPickle, Model, Prediction, Unet, Vae, Variant, given, parse_lora

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data = typer.Typer(no_args_is_help=True, help="Inspect training data.")
app.add_typer(data, name="data")
PICTURES = "A folder, .zip, .tar or .parquet, a pattern of shards ({000..012}.tar, also https://) or hf://owner/name."
RESOLUTION = "Side of the square that pictures are trained at, in pixels. [default: the model's]"
ALLOW_UPSCALE = "Largest factor that a small picture may be enlarged by. [default: 1.05]"


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"latentdiff {latentdiff.__version__}")
        raise typer.Exit


@app.callback()
def _latentdiff(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Latent text-to-image diffusion: generate images from prompts, fine-tune and train models."""


@app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, WebP or JPEG to write; several get numbers.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    model: Model = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the image should not show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's, else 25]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 or less is none. [default: the model's, else 5]")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Guide only between these fractions of all timesteps, 0 clean, 1 noise. [default: 0 1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Image k is drawn from seed + k. [default: random]")] = None,
    num_images: Annotated[int, typer.Option(help="Images per prompt.")] = 1,
    height: Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, ddpm, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, lcm. [default: the model's]"
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            help="Which noise levels: leading, trailing, linspace, sgm_uniform, simple, karras, exponential, beta, "
            "align_your_steps, align_your_steps_xl. [default: the model's]"
        ),
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim, 0 to 1. [default: 0]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: auto]")] = None,
    optimize: Annotated[
        str | None, typer.Option(help="auto, off, or compile (minutes at first, then cached). [default: auto]")
    ] = None,
    approximate: Annotated[
        str | None,
        typer.Option(help="Faster, slightly different images: reuse, int8; separated by commas. [default: none]"),
    ] = None,
    low_memory: Annotated[
        bool | None,
        typer.Option(help="Leave weights in their files: slower, for models larger than memory. [default: no]"),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:UNET[:TEXT]]", help="LoRA file or folder and its weights; may be repeated."),
    ] = None,
    embedding: Annotated[
        list[str] | None, typer.Option(help="Learnt words: a file, or the folder finetune wrote; may be repeated.")
    ] = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", "--from-image", help="Take what is not given from this image's recipe."),
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="PNG that shows the unfinished images, rewritten often.")] = None,
    preview_every: Annotated[int, typer.Option(min=1, help="Steps between two previews.")] = 5,
    image: Annotated[Path | None, typer.Option(help="Start from this image.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of the steps run: 0 keeps the image, 1 ignores it. [default: 0.8, with --mask 1]"),
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Image to output size: cover, contain or stretch. [default: cover]")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Repaint where this image is white.")] = None,
    mask_grow: Annotated[int | None, typer.Option(help="Pixels that the mask grows by. [default: 0]")] = None,
    mask_blur: Annotated[float | None, typer.Option(help="Pixels of its soft edge. [default: 4]")] = None,
    mask_fill: Annotated[
        str | None, typer.Option(help="Start of the masked area: original, noise or blur. [default: original]")
    ] = None,
    only_masked: Annotated[
        int | None,
        typer.Option(help="Paint the masked area and these pixels around it at the model's size. [default: all]"),
    ] = None,
    paste_back: Annotated[
        bool | None, typer.Option(help="Restore the input's pixels outside the mask. [default: yes]")
    ] = None,
    extend: Annotated[str | None, typer.Option(help="Pixels to paint beyond edges, as left=64,top=32.")] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="InstructPix2Pix's guidance by the image. [default: 1.5]")
    ] = None,
) -> None:
    """Generate images from prompts, or from an image."""
    from latentdiff.cli.editing import parse_extend
    from latentdiff.cli.generate import Request, run

    options = {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "seed": seed,
        "height": height,
        "width": width,
        "sampler": sampler,
        "spacing": spacing,
        "eta": eta,
        "dtype": dtype,
        "optimize": optimize,
        "approximate": None if approximate is None else [n for n in map(str.strip, approximate.split(",")) if n],
        "low_memory": low_memory,
        "model": model,
        "loras": tuple(map(parse_lora, lora)) if lora else None,
        "embeddings": tuple(embedding) if embedding else None,
        "vae": vae,
        "unet": unet,
        "variant": variant,
        "prediction_type": prediction_type,
        "allow_pickle": allow_pickle,
        "strength": strength,
        "fit": fit,
        "mask_grow": mask_grow,
        "mask_blur": mask_blur,
        "mask_fill": mask_fill,
        "only_masked": only_masked,
        "paste_back": paste_back,
        "extend": None if extend is None else parse_extend(extend),
        "image_guidance_scale": image_guidance_scale,
    }
    run(
        Request(
            output, prompts or [], num_images, device, recipe, given(**options), image, mask, preview, preview_every
        )
    )


@app.command()
def grid(
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")],
    prompt: Annotated[str | None, typer.Argument(help="What to draw in every cell.")] = None,
    x: Annotated[str | None, typer.Option("--x", help="Setting across, as steps=5,10,20.")] = None,
    y: Annotated[str | None, typer.Option("--y", help="Setting down, as sampler=ddim,dpmpp_2m.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Instead: a contact sheet of this folder's images.")] = None,
    columns: Annotated[int, typer.Option(min=1, help="Of a contact sheet.")] = 6,
    side: Annotated[int, typer.Option(min=16, max=1024, help="Pixels of its images.")] = 160,
    model: Model = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the images should not show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's]")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="[default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="[default: the model's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every cell. [default: 0]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: auto]")] = None,
) -> None:
    """Compare settings, or the images of a folder, on one labelled sheet; cells that exist are not generated again."""
    from latentdiff.cli.grid import contact, run
    from latentdiff.errors import InputError

    if folder is not None:
        contact(folder, output, columns, side)
        return
    if prompt is None or x is None:
        raise InputError("a grid needs a prompt and --x, as --x steps=5,10,20; a contact sheet needs --folder")
    options = {"model": model, "negative_prompt": negative_prompt, "steps": steps, "guidance_scale": guidance_scale}
    more = {"sampler": sampler, "seed": seed, "dtype": dtype}
    run(prompt, output, x, y, device, given(**options, **more))


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
        raise InputError("no config file was given; name a YAML file, configs/ holds examples")
    from latentdiff.cli.train import run

    run(config, set_ or [], resume, skip_bad, auto_batch, num_processes)


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
        str | None, typer.Option(help="Words put before every caption; with textual_inversion, the word to learn.")
    ] = None,
    init_word: Annotated[str | None, typer.Option(help="The word whose embedding the new word starts from.")] = None,
    class_prompt: Annotated[
        str | None, typer.Option(help="Prompt of the class to preserve (DreamBooth's prior).")
    ] = None,
    train_text: Annotated[bool, typer.Option("--train-text", help="Train a LoRA of the text encoder too.")] = False,
    caption_template: Annotated[
        str | None, typer.Option(help="Caption for images in a class folder {name}. [default: {name}]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: by the size of the folder]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step. [default: by the size of the model]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="[default: by the model and method]")] = None,
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
    mixed_precision: Annotated[str | None, typer.Option(help="bf16, fp16 or no. [default: bf16]")] = None,
    gradient_accumulation: Annotated[
        int | None, typer.Option(min=1, help="Batches per step, to fit less memory. [default: 1]")
    ] = None,
    caption_dropout: Annotated[
        float | None, typer.Option(help="Share of captions left empty, for guidance. [default: 0.1]")
    ] = None,
) -> None:
    """Fine-tune a model on a folder of images, which is checked first."""
    from latentdiff.cli.finetune import run

    run(
        resume,
        auto_batch,
        skip_bad,
        num_processes,
        output,
        folder=folder,
        base=model,
        base_options=given(
            vae=vae, unet=unet, variant=variant, prediction_type=prediction_type, allow_pickle=allow_pickle
        )
        or None,
        method=method,
        trigger=trigger,
        init_word=init_word,
        class_prompt=class_prompt,
        text_encoder=train_text or None,
        caption_template=caption_template,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        resolution=resolution,
        allow_upscale=allow_upscale,
        rank=rank,
        seed=seed,
        mixed_precision=mixed_precision,
        gradient_accumulation=gradient_accumulation,
        caption_dropout=caption_dropout,
    )


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="The output folder of a run.")],
) -> None:
    """Write report.html into the folder of a run: curves, sample grids, config and data on one page."""
    from latentdiff.cli.report import run

    run(run_folder)


@app.command()
def evaluate(
    real: Annotated[Path, typer.Option(help="Real images that no model was trained on: a folder, .zip or .tar.")],
    generated: Annotated[
        Path | None, typer.Option(help="Generated images; by default the model generates them.")
    ] = None,
    model: Model = None,
    num: Annotated[int | None, typer.Option(help="How many captions of --real to use. [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's, else 25]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 or less is none. [default: the model's, else 5]")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="As in generate. [default: the model's]")] = None,
    features: Annotated[str, typer.Option(help="efficientnet-lite0 or clip.")] = "efficientnet-lite0",
    weights: Annotated[str | None, typer.Option(help="Weights of clip: a folder or hub id.")] = None,
    judge: Annotated[str | None, typer.Option(help="CLIP folder, text_encoder run or hub id, for captions.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Of frechet, kernel, precision-recall, density-coverage, class-score, sliced-wasserstein, alignment, "
            "retrieval; separated by commas. [default: all that can be computed]"
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples for each 95 % interval.")] = 100,
    seed: Annotated[int, typer.Option(help="Image k is drawn from seed + k.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
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


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Model folder, single file, or hub id.")],
    target: Annotated[Path, typer.Argument(help="What to write: a new folder, or a new .safetensors file.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. [default: as stored]")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="diffusers or single-file. [default: by the target's name]")
    ] = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
) -> None:
    """Convert a model between diffusers' folders and single files, without changing a weight."""
    from latentdiff.cli.convert import run

    how = given(vae=vae, unet=unet, variant=variant, prediction_type=prediction_type, allow_pickle=allow_pickle)
    run(source, target, dtype, form, how)


@app.command()
def info(
    target: Annotated[
        str | None,
        typer.Argument(help="Model, LoRA, embedding, image, run folder or hub id. [default: the bundled model]"),
    ] = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
) -> None:
    """Print what a file or folder is: family, parts, precision; a LoRA's rank; an image's recipe; a run's state."""
    from latentdiff.cli.info import run

    run(target, given(variant=variant, prediction_type=prediction_type, allow_pickle=allow_pickle))


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model folder, file or hub id, or NAME=PATH; repeatable. [default: the bundled one]"),
    ] = None,
    lora: Annotated[list[Path] | None, typer.Option(help="LoRA file or folder, or NAME=PATH; repeatable.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    key: Annotated[
        str | None, typer.Option(help="Key that clients must send; better in the variable LATENTDIFF_KEY.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web page that may call the server; repeatable.")
    ] = None,
    exact_batch: Annotated[
        int | None, typer.Option(help="Pad batches to this many evaluations: the same bits under any load. Try 8.")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB of weights held at once; others are reloaded.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    optimize: Annotated[str, typer.Option(help="auto, off or compile.")] = "auto",
    max_queue: Annotated[int | None, typer.Option(min=1, help="Images that may wait. [default: 128]")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels of an image. [default: 4194304]")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Steps of an image. [default: 150]")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="Images of a request. [default: 16]")] = None,
    deadline: Annotated[float | None, typer.Option(min=1, help="Seconds for a request. [default: 600]")] = None,
) -> None:
    """Serve models over HTTP: a web page, and the APIs of OpenAI and AUTOMATIC1111."""
    from latentdiff.cli.serve import Request, run

    limits = {"queue": max_queue, "pixels": max_pixels, "steps": max_steps, "images": max_images, "deadline": deadline}
    given = {name: value for name, value in limits.items() if value is not None}
    options = {"device": device, "dtype": dtype, "optimize": optimize}
    names = (model or [], lora or [], host, port, key, cors_origin or [], exact_batch, memory_limit)
    run(Request(*names, options, given))


@app.command()
def env(
    model: Annotated[str | None, typer.Option(help="Model whose layers are listed. [default: the bundled one]")] = None,
) -> None:
    """Print versions, processor, kernels, precision, caches and replaced layers, for bug reports."""
    from latentdiff.cli.env import run

    run(model)


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
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Check every image and caption of a folder; exit code 1 if there are errors. Nothing is changed."""
    from latentdiff.cli.data import run

    options = {"caption_template": caption_template, "prefix": trigger}
    sizes = {"resolution": resolution, "allow_upscale": allow_upscale}
    how = given(prediction_type=prediction_type, allow_pickle=allow_pickle)
    raise typer.Exit(run(folder, model, as_json, how, **options, **sizes))
