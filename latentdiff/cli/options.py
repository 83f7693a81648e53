"""Options shared by the commands that open a model, and parsing of `--lora`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latentdiff.errors import InputError

Model = Annotated[
    str | None,
    typer.Option(help="Model folder, .safetensors, .ckpt, or hub id owner/name[@revision]. [default: the bundled one]"),
]
Vae = Annotated[str | None, typer.Option("--vae", help="Replaces the model's VAE: file, folder or hub id.")]
Unet = Annotated[
    str | None, typer.Option("--unet", help="Replaces the model's U-Net: file (also GGUF), folder or hub id.")
]
Variant = Annotated[
    str | None, typer.Option(help="Variant of the files in a folder, for example fp16. [default: none]")
]
Prediction = Annotated[
    str | None,
    typer.Option("--prediction-type", help="epsilon or v_prediction. [default: from the model's files]"),
]
AllowPickle = Annotated[
    bool | None, typer.Option("--allow-pickle", help="Read tensors of .ckpt, .pt and .bin files; no code is run.")
]
NegativePrompt = Annotated[str | None, typer.Option(help="What the images should not show.")]
Side = Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")]
Loras = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE[:UNET[:TEXT]]", help="LoRA file or folder and its weights; may be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [default: auto]")]
NAMES = ("vae", "unet", "variant", "prediction_type", "allow_pickle")


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: all that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def opening(options: dict[str, Any]) -> dict[str, Any]:
    """The options of opening a model (`NAMES`) that were given to a command."""
    return given(**{name: options[name] for name in NAMES if name in options})


def parse_lora(text: str) -> tuple[str, float, float]:
    """Parse `FILE[:unet[:text]]` to (file, weight for the U-Net, weight for the text encoders); one number sets both.

    A colon without a number after it is part of the file name, as in `C:\\loras\\a.safetensors`. Raises InputError.
    """
    path, weights = text, list[float]()
    while len(weights) < 2 and not Path(path).exists():
        head, colon, tail = path.rpartition(":")
        try:
            number = float(tail)
        except ValueError:
            break
        if not colon or not head:
            break
        path, weights = head, [number, *weights]
    if not path or not all(abs(weight) < 1e4 for weight in weights):
        raise InputError(f"--lora {text} must be FILE, FILE:0.8 or FILE:0.8:0.5 (weights for U-Net and text encoders)")
    unet = weights[0] if weights else 1.0
    return path, unet, weights[1] if len(weights) == 2 else unet
