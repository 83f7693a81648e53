"""Declares the options of `latentdiff generate`; `cli.generate` runs it."""

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
)
from latentdiff.cli.root import app

Pair = tuple[int, int]


@app.command()
def generate(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="PNG, WebP or JPEG to write; several images are numbered. With --prompts, a folder."
        ),
    ],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts, one image each.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", help="File with one prompt per line, followed by options; existing images are kept."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images sampled together. [default: all, with --prompts 4]")
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the work of --prompts, one per GPU. [default: 1]")
    ] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            help="How {red|green} and __animal__ in prompts are replaced: random or combinatorial. [default: no]"
        ),
    ] = None,
    wildcards: Annotated[
        Path | None, typer.Option(help="Folder with animal.txt for __animal__ in prompts; implies --expand random.")
    ] = None,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    prompt_2: Annotated[
        str | None, typer.Option("--prompt-2", help="Prompt for SDXL's second text encoder. [default: the prompt]")
    ] = None,
    negative_prompt_2: Annotated[
        str | None,
        typer.Option("--negative-prompt-2", help="Its negative prompt. [default: the negative prompt]"),
    ] = None,
    prompt_syntax: Annotated[
        str | None, typer.Option(help="a1111 (weights, schedules, LoRA tags) or plain (literal text). [default: a1111]")
    ] = None,
    clip_skip: Annotated[
        int | None, typer.Option(help="Final layers of the text encoders to skip, as in diffusers. [default: 0]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's, else 25]")] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 1 or less disables it. [default: the model's, else 5]"),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Guide only between these fractions of the schedule; 0 is clean, 1 noise. [default: 0 1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Image k uses seed + k. [default: random]")] = None,
    variation_strength: Annotated[
        float | None,
        typer.Option(help="Vary the image of one seed: 0 is the same image, 1 a different one."),
    ] = None,
    variation_seed: Annotated[
        int | None, typer.Option(help="Variation k uses the noise of this seed + k. [default: random]")
    ] = None,
    num_images: Annotated[int, typer.Option(help="Images per prompt.")] = 1,
    height: Side = None,
    width: Side = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, ddpm, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, lcm. [default: the model's]"
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            help="Noise levels: leading, trailing, linspace, sgm_uniform, simple, karras, exponential, beta, "
            "align_your_steps, align_your_steps_xl. [default: the model's]"
        ),
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise added by ddim, 0 to 1. [default: 0]")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    optimize: Annotated[
        str | None, typer.Option(help="auto, off or compile (slow at first, then cached). [default: auto]")
    ] = None,
    approximate: Annotated[
        str | None,
        typer.Option(help="Faster but less accurate: reuse, int8, or both, separated by a comma. [default: none]"),
    ] = None,
    low_memory: Annotated[
        bool | None,
        typer.Option(help="Map weights from their files when needed: slower, for models larger than memory."),
    ] = None,
    lora: Loras = None,
    embedding: Annotated[
        list[str] | None, typer.Option(help="Learned words (textual inversion): a file or folder; may be repeated.")
    ] = None,
    vae: Vae = None,
    unet: Unet = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    allow_pickle: AllowPickle = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", "--from-image", help="Image whose recipe supplies the options that are not given."),
    ] = None,
    refiner: Annotated[
        str | None, typer.Option(help="Model for the last steps, such as SDXL's refiner: folder, file or hub id.")
    ] = None,
    refiner_switch: Annotated[
        float | None, typer.Option(help="Fraction of the steps after which it takes over. [default: 0.8]")
    ] = None,
    aesthetic_score: Annotated[
        float | None, typer.Option(help="Aesthetic score that SDXL's refiner reads. [default: 6]")
    ] = None,
    negative_aesthetic_score: Annotated[
        float | None, typer.Option(help="The same for the negative prompt. [default: 2.5]")
    ] = None,
    original_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="SDXL: original size. [default: the image's]")
    ] = None,
    crops_coords_top_left: Annotated[
        Pair | None, typer.Option(metavar="TOP LEFT", help="SDXL: corner of the crop. [default: 0 0]")
    ] = None,
    target_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="SDXL: target size. [default: the image's]")
    ] = None,
    negative_original_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="The same for the negative prompt. [default: as above]")
    ] = None,
    negative_crops_coords_top_left: Annotated[
        Pair | None, typer.Option(metavar="TOP LEFT", help="The same for the negative prompt. [default: as above]")
    ] = None,
    negative_target_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="The same for the negative prompt. [default: as above]")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Evaluate the networks in overlapping tiles with sides of this many pixels (large images)."),
    ] = None,
    seamless: Annotated[str | None, typer.Option(help="Axes along which opposite edges match: x, y or x,y.")] = None,
    hires: Annotated[
        float | None, typer.Option(help="Scale of a second pass, which enlarges the image and adds detail.")
    ] = None,
    hires_strength: Annotated[float | None, typer.Option(help="Strength of the second pass. [default: 0.3]")] = None,
    hires_steps: Annotated[
        int | None, typer.Option(help="Steps of the second pass. [default: those of the first]")
    ] = None,
    upscaler: Annotated[
        str | None, typer.Option(help="How it enlarges: lanczos, latent or an ESRGAN file. [default: lanczos]")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(help="PNG with previews of the unfinished images, updated during sampling.")
    ] = None,
    preview_every: Annotated[int | None, typer.Option(min=1, help="Steps between previews. [default: 5]")] = None,
    safety: Annotated[
        str | None,
        typer.Option(help="Check the content of images, and flag, blur or refuse nudity. [default: no check]"),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Input image: edit this image, or start from it.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the steps to run: 0 keeps the image, 1 ignores it. [default: 0.8, with --mask 1]"
        ),
    ] = None,
    source_prompt: Annotated[
        str | None,
        typer.Option(help="Description of the input image; starts from its DDIM inversion."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="How the image is fitted to the output size: cover, contain or stretch. [default: cover]"),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask image; white areas are repainted.")] = None,
    mask_grow: Annotated[int | None, typer.Option(help="Pixels to enlarge the mask by. [default: 0]")] = None,
    mask_blur: Annotated[float | None, typer.Option(help="Width of its soft edge in pixels. [default: 4]")] = None,
    mask_fill: Annotated[
        str | None,
        typer.Option(help="Initial content of the masked area: original, noise or blur. [default: original]"),
    ] = None,
    only_masked: Annotated[
        int | None,
        typer.Option(help="Paint only the masked area, with this many pixels around it, at the model's size."),
    ] = None,
    paste_back: Annotated[
        bool | None, typer.Option(help="Restore the pixels of the input outside the mask. [default: yes]")
    ] = None,
    extend: Annotated[
        str | None, typer.Option(help="Pixels to add at the edges (outpainting), for example left=64,top=32.")
    ] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="Image guidance scale of InstructPix2Pix. [default: 1.5]")
    ] = None,
) -> None:
    """Generate images from prompts, or from an image."""
    options = dict(locals())
    from latentdiff.cli.generate import run
    from latentdiff.cli.request import read_request

    run(read_request(options))
