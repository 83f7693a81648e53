"""Declares the options of `animate` and `grid`; the modules with these names run them."""

from pathlib import Path
from typing import Annotated

import typer

from latentdiff.cli.options import (
    AllowPickle,
    Device,
    Dtype,
    Loras,
    Model,
    NegativePrompt,
    Prediction,
    Side,
    Unet,
    Vae,
    Variant,
    given,
    opening,
    parse_lora,
)
from latentdiff.cli.root import app


@app.command()
def animate(
    output: Annotated[Path, typer.Option("--output", "-o", help="WebP, GIF, PNG or MP4 to write.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts of the key frames.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames from one prompt to the next. [default: 16]")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second. [default: 12]")] = None,
    seed: Annotated[
        str | None,
        typer.Option(help="Prompt k uses seed + k, or the k-th of several: 7,8,9. [default: random]"),
    ] = None,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's]")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="[default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="[default: the model's]")] = None,
    spacing: Annotated[str | None, typer.Option(help="[default: the model's]")] = None,
    height: Side = None,
    width: Side = None,
    lora: Loras = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames sampled together.")] = 8,
    recipe: Annotated[
        Path | None, typer.Option(help="Animation whose recipe supplies the options that are not given.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(help="PNG with previews of the unfinished frames, updated during sampling.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
) -> None:
    """Generate an animation between prompts or between seeds; existing frames are not generated again."""
    how = opening(locals())
    options = {"model": model, "negative_prompt": negative_prompt, "steps": steps, "guidance_scale": guidance_scale}
    more = {"sampler": sampler, "spacing": spacing, "height": height, "width": width, "dtype": dtype}
    loras = tuple(map(parse_lora, lora)) if lora else None
    settings = given(**options, **more, loras=loras) | how
    from latentdiff.cli.animate import AnimationRequest, parse_seeds, run

    seeds = None if seed is None else parse_seeds(seed)
    run(AnimationRequest(output, prompts or [], seeds, frames, fps, batch_size, device, recipe, preview, settings))


@app.command()
def grid(
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")],
    prompt: Annotated[str | None, typer.Argument(help="Prompt of all cells.")] = None,
    x: Annotated[str | None, typer.Option("--x", help="Setting of the columns, for example steps=5,10,20.")] = None,
    y: Annotated[
        str | None, typer.Option("--y", help="Setting of the rows, for example sampler=ddim,dpmpp_2m.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Make a contact sheet of the images in this folder instead.")
    ] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of a contact sheet. [default: 6]")] = None,
    side: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Longest side of its images in pixels. [default: 160]")
    ] = None,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's]")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="[default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="[default: the model's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all cells. [default: 0]")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
) -> None:
    """Compare settings, or the images of a folder, on one labelled sheet; existing cells are not generated again."""
    how = opening(locals())
    options = {"model": model, "negative_prompt": negative_prompt, "steps": steps, "guidance_scale": guidance_scale}
    settings = given(**options, sampler=sampler, seed=seed, dtype=dtype) | how
    from latentdiff.cli.grid import contact, run
    from latentdiff.errors import InputError

    sheet = given(columns=columns, side=side)
    if folder is not None:
        unused = ["the prompt"] * (prompt is not None) + [_option(name) for name in given(x=x, y=y) | settings]
        if unused:
            raise InputError(f"--folder {folder} makes a contact sheet; omit {unused[0]}, or --folder")
        contact(folder, output, **sheet)
        return
    if sheet:
        raise InputError(f"{_option(next(iter(sheet)))} is for contact sheets; pass --folder, or omit it")
    if prompt is None or x is None:
        raise InputError(
            "a grid requires a prompt and --x, for example --x steps=5,10,20; a contact sheet requires --folder"
        )
    run(prompt, output, x, y, device, settings)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
