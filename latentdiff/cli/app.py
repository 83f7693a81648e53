"""The verbs and their options. Nothing slow is imported before a verb runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

import latentdiff

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data = typer.Typer(no_args_is_help=True, help="Look at training data.")
app.add_typer(data, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"latentdiff {latentdiff.__version__}")
        raise typer.Exit


@app.callback()
def _latentdiff(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Latent text-to-image diffusion: make pictures from prompts, and train the models that do."""


@app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write; several get numbered names.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id. [default: the bundled one]")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: 25]")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 ignores guidance. [default: 5]")] = None,
    seed: Annotated[int | None, typer.Option(help="Image k is drawn from seed + k. [default: random]")] = None,
    num_images: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 1,
    height: Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="ddim, ddpm, euler, euler_ancestral, dpmpp_2m, dpmpp_2m_sde, lcm. [default: ddim]"),
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim, 0 to 1. [default: 0]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: auto]")] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA file, or the folder that finetune wrote.")] = None,
    lora_scale: Annotated[float | None, typer.Option(help="How much of the LoRA. [default: 1]")] = None,
    from_image: Annotated[Path | None, typer.Option(help="Take what is not given from this PNG's recipe.")] = None,
) -> None:
    """Make pictures from prompts."""
    from latentdiff.cli.generate import Request, run

    asked = {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "height": height,
        "width": width,
        "sampler": sampler,
        "eta": eta,
        "dtype": dtype,
        "model": model,
        "lora": None if lora is None else str(lora),
        "lora_scale": lora_scale,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    run(Request(output, prompts or [], num_images, device, from_image, given))


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file; see configs/.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the files' JSON schema, for editors.")] = False,
) -> None:
    """Train a VAE, a text encoder or a U-Net as a config file says; an interrupted run goes on where it was."""
    from latentdiff.config.base import load_yaml
    from latentdiff.config.train import train_config
    from latentdiff.errors import InputError

    if schema:
        typer.echo(json.dumps(train_config.json_schema(), indent=2))
        return
    if config is None:
        raise InputError("no config file was given; name a YAML file, configs/ holds examples")
    checked = load_yaml(train_config, config, set_ or [])
    from latentdiff.training.run import train as start

    start(checked)


@app.command()
def finetune(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, a .zip or a .tar.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    model: Annotated[str | None, typer.Option(help="Model folder or hub id. [default: the bundled one]")] = None,
    method: Annotated[str, typer.Option(help="lora, dora or full.")] = "lora",
    trigger: Annotated[str, typer.Option(help="Words put before every caption.")] = "",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: by the folder's size]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step. [default: by the model's size]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="[default: by the model and method]")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of lora and dora. [default: 16]")] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what the check finds wrong.")] = False,
) -> None:
    """Teach a model the pictures of a folder, checked first; an interrupted run goes on where it was."""
    from latentdiff.cli.finetune import run

    run(
        folder=folder,
        output=output,
        base=model,
        method=method,
        trigger=trigger,
        skip_bad=skip_bad,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        rank=rank,
        seed=seed,
    )


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures, a .zip or a .tar.")],
    model: Annotated[
        str | None, typer.Option(help="Whose size and token limit count. [default: the bundled one]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read every picture and caption and say what is wrong; exit code 1 when something is. Nothing is changed."""
    from latentdiff.cli.data import run

    raise typer.Exit(run(folder, model, as_json))
