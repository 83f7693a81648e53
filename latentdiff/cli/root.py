"""The Typer application that commands are added to, and its option `--version`."""

from typing import Annotated

import typer

import latentdiff

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data = typer.Typer(no_args_is_help=True, help="Inspect training data.")
app.add_typer(data, name="data")


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
