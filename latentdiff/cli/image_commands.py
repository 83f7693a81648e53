"""Commands that make images."""

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
    parse_lora,
)
from latentdiff.cli.root import app

Pair = tuple[int, int]


@app.command()
def generate(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="PNG, WebP or JPEG to write; several get numbers. --prompts: a folder."),
    ],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", help="File with a prompt per line, and options after it; continues what it began."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images sampled together. [default: all; 4 with --prompts]")
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that share --prompts, one for each GPU. [default: 1]")
    ] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            help="Of {red|green} and __animal__ in prompts: random, or combinatorial for all. [default: text]"
        ),
    ] = None,
    wildcards: Annotated[
        Path | None, typer.Option(help="Folder of animal.txt for __animal__ in prompts; --expand is random then.")
    ] = None,
    model: Model = None,
    negative_prompt: NegativePrompt = None,
    prompt_2: Annotated[
        str | None, typer.Option("--prompt-2", help="What SDXL's second text encoder reads. [default: the prompt]")
    ] = None,
    negative_prompt_2: Annotated[
        str | None,
        typer.Option("--negative-prompt-2", help="The same for the negative prompt. [default: as the first]"),
    ] = None,
    prompt_syntax: Annotated[
        str | None, typer.Option(help="a1111: weights, schedules, LoRA tags; plain: text as it is. [default: a1111]")
    ] = None,
    clip_skip: Annotated[
        int | None, typer.Option(help="Layers of the text encoders to leave out, as in diffusers. [default: 0]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's, else 25]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 or less is none. [default: the model's, else 5]")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Guide only between these fractions of all timesteps, 0 clean, 1 noise. [default: 0 1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Image k is drawn from seed + k. [default: random]")] = None,
    variation_strength: Annotated[
        float | None,
        typer.Option(help="Mix the noise of all images, drawn from one seed, with other noise by this, 0 to 1."),
    ] = None,
    variation_seed: Annotated[
        int | None, typer.Option(help="Image k is mixed with the noise of this seed + k. [default: random]")
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
            help="Which noise levels: leading, trailing, linspace, sgm_uniform, simple, karras, exponential, beta, "
            "align_your_steps, align_your_steps_xl. [default: the model's]"
        ),
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim, 0 to 1. [default: 0]")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
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
    lora: Loras = None,
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
    refiner: Annotated[
        str | None, typer.Option(help="Second model, as SDXL's refiner, for the last steps: folder, file or hub id.")
    ] = None,
    refiner_switch: Annotated[
        float | None, typer.Option(help="Fraction of the noise levels after which it takes over. [default: 0.8]")
    ] = None,
    aesthetic_score: Annotated[float | None, typer.Option(help="That SDXL's refiner aims at. [default: 6]")] = None,
    negative_aesthetic_score: Annotated[
        float | None, typer.Option(help="Of the negative prompt. [default: 2.5]")
    ] = None,
    original_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="SDXL: size before resizing. [default: the image's]")
    ] = None,
    crops_coords_top_left: Annotated[
        Pair | None, typer.Option(metavar="TOP LEFT", help="SDXL: where the image was cropped. [default: 0 0]")
    ] = None,
    target_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="SDXL: size to aim at. [default: the image's]")
    ] = None,
    negative_original_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="Of the negative prompt. [default: as the prompt's]")
    ] = None,
    negative_crops_coords_top_left: Annotated[
        Pair | None, typer.Option(metavar="TOP LEFT", help="Of the negative prompt. [default: as the prompt's]")
    ] = None,
    negative_target_size: Annotated[
        Pair | None, typer.Option(metavar="HEIGHT WIDTH", help="Of the negative prompt. [default: as the prompt's]")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Evaluate in overlapping tiles of these pixels a side, for large images.")
    ] = None,
    seamless: Annotated[str | None, typer.Option(help="Axes along which opposite edges fit: x, y or x,y.")] = None,
    hires: Annotated[float | None, typer.Option(help="Enlarge by this, then add detail in a second pass.")] = None,
    hires_strength: Annotated[float | None, typer.Option(help="Of the second pass. [default: 0.6]")] = None,
    hires_steps: Annotated[int | None, typer.Option(help="Of the second pass. [default: as the first]")] = None,
    upscaler: Annotated[str | None, typer.Option(help="lanczos, latent, or an ESRGAN file. [default: lanczos]")] = None,
    preview: Annotated[Path | None, typer.Option(help="PNG that shows the unfinished images, rewritten often.")] = None,
    preview_every: Annotated[int, typer.Option(min=1, help="Steps between two previews.")] = 5,
    safety: Annotated[
        str | None,
        typer.Option(help="What the content checker does to nudity: flag, blur or refuse. [default: no check]"),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this image.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of the steps run: 0 keeps the image, 1 ignores it. [default: 0.8, with --mask 1]"),
    ] = None,
    source_prompt: Annotated[
        str | None,
        typer.Option(help="What the image shows: start from the noise that ddim makes it from (DDIM inversion)."),
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
        "prompt_2": prompt_2,
        "negative_prompt_2": negative_prompt_2,
        "prompt_syntax": prompt_syntax,
        "clip_skip": clip_skip,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "seed": seed,
        "variation_seed": variation_seed,
        "variation_strength": variation_strength,
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
        "source_prompt": source_prompt,
        "fit": fit,
        "mask_grow": mask_grow,
        "mask_blur": mask_blur,
        "mask_fill": mask_fill,
        "only_masked": only_masked,
        "paste_back": paste_back,
        "extend": None if extend is None else parse_extend(extend),
        "image_guidance_scale": image_guidance_scale,
        "tile": tile,
        "seamless": seamless,
        "hires": hires,
        "hires_strength": hires_strength,
        "hires_steps": hires_steps,
        "upscaler": upscaler,
        "refiner": refiner,
        "refiner_switch": refiner_switch,
        "aesthetic_score": aesthetic_score,
        "negative_aesthetic_score": negative_aesthetic_score,
        "original_size": original_size,
        "crops_coords_top_left": crops_coords_top_left,
        "target_size": target_size,
        "negative_original_size": negative_original_size,
        "negative_crops_coords_top_left": negative_crops_coords_top_left,
        "negative_target_size": negative_target_size,
    }
    run(
        Request(
            output, prompts or [], num_images, device, recipe, given(**options), image, mask, preview, preview_every,
            prompts_file, batch_size, num_processes, expand, wildcards, safety,
        )
    )  # fmt: skip
