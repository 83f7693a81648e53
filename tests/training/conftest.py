"""Pictures and frozen components for small training runs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from latentdiff.config.train import train_config
from latentdiff.training.train import train
from tests.training.small_runs import COLOURS, Make, base, text_config, vae_config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs and squares of four colours."""
    path = tmp_path_factory.mktemp("pictures")
    rows = []
    for name, colour in COLOURS.items():
        for shape in ("disc", "square"):
            for k in range(2):
                image = Image.new("RGB", (16, 16), "white")
                draw = ImageDraw.Draw(image)
                (draw.ellipse if shape == "disc" else draw.rectangle)((2 + k, 2, 13, 12 + k), fill=colour)
                image.save(path / f"{name}-{shape}-{k}.png")
                rows.append({"file_name": f"{name}-{shape}-{k}.png", "text": f"a {name} {shape}"})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def frozen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE and a text encoder, hardly trained."""
    path = tmp_path_factory.mktemp("frozen")
    for name, config in (("vae", vae_config), ("text", text_config)):
        train(train_config.validate_python(config(folder, path / name, max_steps=2)))
    return path


def unet_values(folder: Path, frozen: Path, output: Path, **optim: Any) -> dict[str, Any]:
    """The config of a small U-Net between the frozen parts."""
    model = {
        "sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "cross_attention_dim": 32,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "num_attention_heads": [2, 4],
    }  # fmt: skip
    schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return base(folder, output, **optim) | {
        "task": "unet", "vae": str(frozen / "vae" / "model"), "text_encoder": str(frozen / "text" / "model"),
        "model": model, "schedule": schedule, "sample_prompts": ["a red disc", "a blue square"], "sample_steps": 2,
    }  # fmt: skip


@pytest.fixture
def unet_config(folder: Path, frozen: Path) -> Make:
    return partial(unet_values, folder, frozen)
