"""Declares the options of `convert`, `info`, `serve` and `env`; the modules with these names run them."""

from pathlib import Path
from typing import Annotated

import typer

from latentdiff.cli.options import AllowPickle, Device, Prediction, Unet, Vae, Variant, given, opening
from latentdiff.cli.root import app


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Model folder, single file, or hub id.")],
    target: Annotated[Path, typer.Argument(help="New folder, or new .safetensors file.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. [default: as stored]")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="diffusers or single-file. [default: by the target's name]")
    ] = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
) -> None:
    """Convert a model between diffusers' folders and single files; the weights are not changed."""
    how = opening(locals())
    from latentdiff.cli.convert import run

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
    """Describe a model, LoRA, embedding, image or training run."""
    how = opening(locals())
    from latentdiff.cli.info import run

    run(target, how)


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model folder, file or hub id, or NAME=PATH; repeatable. [default: the bundled one]"),
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help="LoRA file or folder, or NAME=PATH; repeatable.")] = None,
    embedding: Annotated[
        list[Path] | None, typer.Option(help="File or folder of learned words, for all models; repeatable.")
    ] = None,
    upscaler: Annotated[list[str] | None, typer.Option(help="ESRGAN file, or NAME=PATH; repeatable.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines can only connect with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    key: Annotated[
        str | None, typer.Option(help="Key that clients must send; the variable LATENTDIFF_KEY is safer.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may call the server; repeatable.")
    ] = None,
    exact_batch: Annotated[
        int | None,
        typer.Option(help="Pad batches to this many evaluations, for bit-identical images under any load. Try 8."),
    ] = None,
    memory_limit: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="GiB of weights in memory; models beyond it are unloaded and loaded again when needed."
        ),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Enable fine-tuning at /train, with images from this folder or uploaded ones.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder for the runs of /train. [default: runs]")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    optimize: Annotated[str, typer.Option(help="auto, off or compile.")] = "auto",
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    safety: Annotated[
        str | None,
        typer.Option(help="Check the content of images, and flag, blur or refuse nudity. [default: no check]"),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of waiting images. [default: 128]")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Maximum pixels per image. [default: 4194304]")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Maximum steps per image. [default: 150]")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="Maximum images per request. [default: 16]")] = None,
    deadline: Annotated[
        float | None, typer.Option(min=1, help="Time limit of a request in seconds. [default: 600]")
    ] = None,
) -> None:
    """Serve models over HTTP: a web page and the APIs of OpenAI and AUTOMATIC1111."""
    options = {"device": device, "dtype": dtype, "optimize": optimize} | opening(locals())
    limits = given(queue=max_queue, pixels=max_pixels, steps=max_steps, images=max_images, deadline=deadline)
    from latentdiff.cli.serve import Request, run

    run(
        Request(
            models=model or [], loras=lora or [], embeddings=embedding or [], upscalers=upscaler or [], host=host,
            port=port, key=key, origins=cors_origin or [], exact_batch=exact_batch, memory_limit=memory_limit,
            safety=safety, options=options, limits=limits, train=train, runs=runs,
        )
    )  # fmt: skip


@app.command()
def env(
    model: Annotated[str | None, typer.Option(help="Model whose layers are listed. [default: the bundled one]")] = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    optimize: Annotated[str, typer.Option(help="auto, off or compile.")] = "auto",
) -> None:
    """Print versions, processor, kernels, caches and replaced layers, for bug reports."""
    how = opening(locals()) | {"device": device, "dtype": dtype, "optimize": optimize}
    from latentdiff.cli.env import run

    run(model, how)
