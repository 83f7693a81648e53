"""The shapes of the models whose training steps are measured, and pictures to train them on."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from latentdiff.checkpoints.locate_model import locate
from latentdiff.config.base import Config
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.text.clip import CLIPTextModel
from latentdiff.text.tokenizer import CLIPTokenizer, read_tokenizer

EMOJI = Path(__file__).parents[1] / "configs" / "emoji" / "unet.yaml"


ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # those of the bundled vocabulary
TEXT = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768, **ENDS)


class Shape(Config):
    """Sizes of the networks, the batch and its latents; the defaults are those of Stable Diffusion 1.5."""

    name: str = "sd15"
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: CLIPTextConfig = TEXT
    schedule: ScheduleConfig = ScheduleConfig()
    batch: int = 1
    latents: int = 64
    pictures: int = 4

    @property
    def resolution(self) -> int:
        return self.latents * self.vae.downscale

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of the bundled model; its token ids are valid in every vocabulary that is at least as large."""
        tokenizer = read_tokenizer(locate(None) / "tokenizer")
        tokenizer.model_max_length = self.text.max_position_embeddings
        return tokenizer

    def text_encoder(self) -> CLIPTextModel:
        return CLIPTextModel(self.text).requires_grad_(False).eval()


def emoji() -> Shape:
    """The bundled model, as it was trained."""
    recipe, folder = yaml.safe_load(EMOJI.read_text(encoding="utf-8")), locate(None)
    text, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("text_encoder", "vae"))
    return Shape(
        name="emoji",
        unet=recipe["model"],
        vae=VAEConfig.read(vae, "vae/config.json"),
        text=CLIPTextConfig.read(text, "text_encoder/config.json"),
        schedule=recipe["schedule"],
        batch=recipe["data"]["batch_size"],
        latents=recipe["model"]["sample_size"],
        pictures=128,
    )


def write_pictures(shape: Shape, folder: Path) -> None:
    """Write smooth random PNG files, and their captions in `metadata.jsonl`."""
    folder.mkdir(parents=True)
    rng, size = np.random.default_rng(0), (shape.resolution, shape.resolution)
    lines = []
    for place in range(shape.pictures):
        colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(folder / f"{place:05d}.png")
        lines.append(json.dumps({"file_name": f"{place:05d}.png", "text": f"picture {place} of a red apple"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
