"""Small training runs: their configs, and what they logged and saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentdiff.config.train import train_config
from latentdiff.training.train import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (0, 0, 0)}
Make = Callable[..., dict[str, Any]]


def base(folder: Path, output: Path, **optim: Any) -> dict[str, Any]:
    return {
        "data": {"train": str(folder), "held_out": str(folder), "resolution": 16, "batch_size": 8},
        "optim": {"learning_rate": 3e-3, "warmup_steps": 2, "max_steps": 30, "ema_decay": 0.9} | optim,
        "run": {
            "output": str(output), "mixed_precision": "no", "log_every": 1, "sample_every": 1000, "checkpoint_every": 5,
        },
    }  # fmt: skip


def vae_config(folder: Path, output: Path, **optim: Any) -> dict[str, Any]:
    model = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16}
    return base(folder, output, **optim) | {"task": "vae", "model": model}


def text_config(folder: Path, output: Path, **optim: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 540, "max_length": 16, "hidden_size": 32, "layers": 1, "heads": 2, "projection_dim": 16}
    return base(folder, output, **optim) | {"task": "text_encoder", "image_layers": 1, "patch_size": 8} | sizes


def run(config: dict[str, Any], resume: bool = False) -> list[dict[str, Any]]:
    """Train in this process; returns the logged values."""
    checked = train_config.validate_python(config)
    train(checked, resume=resume)
    lines = (checked.run.output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


def weights(output: Path) -> bytes:
    return (output / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
