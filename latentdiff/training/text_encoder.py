"""CLIP text encoder training: contrastive, together with a small image tower."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from latentdiff.checkpoints.folder import write_text_encoder
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.train import TextTrainConfig
from latentdiff.data.dataset import CaptionedImages, load_pixels, read_parts
from latentdiff.errors import InputError
from latentdiff.text.clip import CLIPTextModel
from latentdiff.text.tokenizer import CLIPTokenizer, read_tokenizer
from latentdiff.training.checkpoints import Staged
from latentdiff.training.losses import contrastive_loss
from latentdiff.training.processes import process_state
from latentdiff.training.task import Share
from latentdiff.training.tokenizer import train_tokenizer

JUDGED = 256


class ContrastiveModule(nn.Module):
    """Computes CLIP's loss on one batch of pictures and captions."""

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """batch: `pixels` [B, 3, H, W] in [-1, 1], `caption` B strings."""
        text, image = self.embed_text(batch["caption"]), self.embed_images(batch["pixels"])
        return {"loss": contrastive_loss(text.float(), image.float(), self.scale)}

    @property
    def scale(self) -> Tensor:
        """Logarithm of the temperature that multiplies similarities, at most log 100."""
        return self.clip.logit_scale.clamp(max=4.6052)

    def embed_text(self, captions: list[str]) -> Tensor:
        pooled = self.clip.text_model(self.tokenizer(captions).to(self.clip.device)).pooler_output
        return self.clip.text_projection(pooled)  # [B, projection_dim]

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self.clip.visual_projection(self.clip.vision_model(pixels).pooler_output)  # [B, projection_dim]


class TextEncoderTask:
    """Train on one folder; measure retrieval on another. tokenizer_folder: where a new run writes the tokenizer."""

    def __init__(self, config: TextTrainConfig, tokenizer_folder: Path) -> None:
        rows, held_out = read_parts(config.data, measure=True)
        tokenizer = _tokenizer(config, tokenizer_folder, [caption for row in rows for caption in row.captions])
        self.text = text_config(config, tokenizer)
        self.module = ContrastiveModule(CLIPModel(clip_config(config, self.text)), tokenizer)
        self.collate = default_collate
        self.data = CaptionedImages(rows, config.data)
        held_out = held_out[:JUDGED]
        self.captions = [row.captions[0] for row in held_out]
        self.pixels = torch.stack(
            [load_pixels(row, config.data.resolution, config.data.background) for row in held_out]
        )

    def evaluate(self, rank: int, world: int) -> Share:
        """Recall at 1 and 5 of held-out pictures by their captions, and the held-out loss."""
        device = self.module.clip.device
        image = nn.functional.normalize(self.module.embed_images(self.pixels.to(device)).float(), dim=-1)
        text = nn.functional.normalize(self.module.embed_text(self.captions[rank::world]).float(), dim=-1)
        similarity = text @ image.T
        right = torch.arange(len(image), device=device)[rank::world]
        better = (similarity > similarity.gather(1, right[:, None])).sum(1)
        loss = nn.functional.cross_entropy(self.module.scale.exp() * similarity, right, reduction="sum")
        share = Share()
        share.add("held_out_loss", loss.item(), len(text))
        share.add("recall_1", (better < 1).sum().item(), len(text))
        share.add("recall_5", (better < 5).sum().item(), len(text))
        return share

    def save(self, folder: Path) -> None:
        """`text_encoder/` and `tokenizer/` in diffusers' layout, and `clip/` with both towers."""
        clip = self.module.clip
        text = CLIPTextModel(self.text)
        text.load_state_dict(clip.text_model.state_dict())
        write_text_encoder(text, folder / "text_encoder")
        clip.save_pretrained(folder / "clip")
        self.module.tokenizer.save(folder / "tokenizer")


def _tokenizer(config: TextTrainConfig, folder: Path, captions: list[str]) -> CLIPTokenizer:
    """The tokenizer in `folder`, which the first process trains when the run starts.

    Raises InputError if the run was started with another length.
    """
    with process_state().main_process_first():
        if process_state().is_main_process and not folder.exists():
            with Staged(True, folder) as staged:
                train_tokenizer(captions, config.vocab_size, config.max_length).save(staged)
        tokenizer = read_tokenizer(folder)
    if tokenizer.model_max_length != config.max_length:
        raise InputError(
            f"max_length={config.max_length}, but {folder} was trained with {tokenizer.model_max_length}; keep it, or "
            "use another run.output"
        )
    return tokenizer


def text_config(config: TextTrainConfig, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text tower for the vocabulary of `tokenizer`."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        projection_dim=config.projection_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_config(config: TextTrainConfig, text: CLIPTextConfig) -> CLIPConfig:
    """The text tower, and an image tower of the same width."""
    vision = CLIPVisionConfig(
        image_size=config.data.resolution,
        patch_size=config.patch_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=config.image_layers,
        num_attention_heads=text.num_attention_heads,
        projection_dim=text.projection_dim,
    )
    return CLIPConfig(text_config=text.write(), vision_config=vision.to_dict(), projection_dim=text.projection_dim)
