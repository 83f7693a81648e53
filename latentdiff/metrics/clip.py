"""A CLIP model that embeds pictures and captions for metrics."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import cached_file, logging

from latentdiff.errors import CheckpointError, InputError

PREPROCESSOR = "preprocessor_config.json"


class Clip:
    """A CLIP model, which embeds pictures and texts in one space. weights: its folder or hub id."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, mean: Tensor, std: Tensor, weights: str) -> None:
        self.model, self.tokenizer, self.weights = model, tokenizer, weights
        self.mean, self.std = mean.to(model.device), std.to(model.device)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, R, R] to [B, projection_dim]."""
        size = self.model.config.vision_config.image_size
        scaled = resize(pixels.to(self.model.device), size) / 255
        return self.model.visual_projection(self.model.vision_model((scaled - self.mean) / self.std).pooler_output)

    def embed_text(self, texts: list[str]) -> Tensor:
        """Texts to [B, projection_dim], truncated at the model's token limit."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        pooled = self.model.text_model(tokens.input_ids.to(self.model.device)).pooler_output
        return self.model.text_projection(pooled)


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, R, R] to float32 [B, 3, size, size], 0 to 255; bicubic with antialiasing."""
    if pixels.shape[-1] == size:
        return pixels.float()
    return F.interpolate(pixels.float(), (size, size), mode="bicubic", antialias=True).clamp(0, 255)


def open_clip(path_or_id: str, device: torch.device) -> Clip:
    """Open a transformers CLIPModel folder or hub id, or the result of `latentdiff train` with task text_encoder.

    Raises InputError if the model is not found, and CheckpointError if it cannot be read.
    """
    folder = _find(Path(path_or_id))
    if folder is None and not _is_hub_id(path_or_id):
        raise InputError(f"{path_or_id} has no CLIPModel; pass its folder, a text_encoder run, or a hub id owner/name")
    place = path_or_id if folder is None else str(folder)
    own = folder is not None and (folder.parent / "tokenizer").is_dir()
    words = str(Path(place).parent / "tokenizer") if own else place
    local = folder is not None
    try:
        with _no_progress_bars():
            model, found = CLIPModel.from_pretrained(
                place, local_files_only=local, use_safetensors=True, output_loading_info=True
            )
        if found["missing_keys"]:
            raise ValueError(f"it lacks {min(found['missing_keys'])}")
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=local)
        mean, std = (torch.full((3, 1, 1), 0.5),) * 2 if own else _normalisation(place, local)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path_or_id} is not a readable CLIP model ({reason}); use another") from error
    return Clip(model.eval().to(device), tokenizer, mean, std, path_or_id)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disable transformers' progress bars, which are shown even for files that load in milliseconds."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _find(path: Path) -> Path | None:
    """The folder itself, or `clip/` or `model/clip/` of a training run."""
    return next((place for place in (path, path / "clip", path / "model" / "clip") if _is_clip(place)), None)


def _is_clip(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "clip"
    except (OSError, ValueError):
        return False


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") and not Path(name).exists()


def _normalisation(place: str, local: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each colour channel that the model was trained with: [3, 1, 1] each."""
    found = cached_file(place, PREPROCESSOR, local_files_only=local)
    values = json.loads(Path(found).read_text(encoding="utf-8"))
    return torch.tensor(values["image_mean"]).view(3, 1, 1), torch.tensor(values["image_std"]).view(3, 1, 1)
