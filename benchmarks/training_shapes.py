"""The models that a training step is measured on, and pictures to train them with."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentdiff.checkpoint import locate, read_vae_config
from latentdiff.config.base import Config
from latentdiff.config.model import ScheduleConfig, UNetConfig, VAEConfig

EMOJI = Path(__file__).parents[1] / "configs" / "emoji" / "unet.yaml"


class TextShape(Config):
    """The text encoder, in the words of transformers' CLIPTextConfig."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77


class Shape(Config):
    """The sizes of all models, of a batch and of its latents; the defaults are Stable Diffusion 1.5's."""

    name: str = "sd15"
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text: TextShape = TextShape()
    schedule: ScheduleConfig = ScheduleConfig()
    batch: int = 1
    latents: int = 64
    pictures: int = 4

    @property
    def resolution(self) -> int:
        return self.latents * self.vae.downscale

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The bundled model's, which any vocabulary that is no smaller can take the numbers of."""
        length = self.text.max_position_embeddings
        return CLIPTokenizer.from_pretrained(locate(None) / "tokenizer", model_max_length=length)

    def text_encoder(self) -> torch.nn.Module:
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        return CLIPTextModel(CLIPTextConfig(**self.text.model_dump(), **ids)).requires_grad_(False).eval()


def emoji() -> Shape:
    """The bundled model, as it was trained."""
    recipe, folder = yaml.safe_load(EMOJI.read_text(encoding="utf-8")), locate(None)
    text = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    return Shape(
        name="emoji",
        unet=recipe["model"],
        vae=read_vae_config(folder / "vae"),
        text=TextShape.model_validate({key: text[key] for key in TextShape.model_fields}),
        schedule=recipe["schedule"],
        batch=recipe["data"]["batch_size"],
        latents=recipe["model"]["sample_size"],
        pictures=128,
    )


def write_pictures(shape: Shape, folder: Path) -> None:
    """Smooth random PNG files, and what each is called in `metadata.jsonl`."""
    folder.mkdir(parents=True)
    rng, size = np.random.default_rng(0), (shape.resolution, shape.resolution)
    lines = []
    for place in range(shape.pictures):
        colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(folder / f"{place:05d}.png")
        lines.append(json.dumps({"file_name": f"{place:05d}.png", "text": f"picture {place} of a red apple"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
