"""Textual inversion (Gal et al. 2023): new words for a frozen model, put in to be trained, saved, loaded for use."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentdiff.checkpoints.components import Components
from latentdiff.errors import CheckpointError, InputError
from latentdiff.files import atomic_path
from latentdiff.text.conditioning import TextConditioner

FILE = "learned_embeds.safetensors"


class LearnedRows(nn.Module):
    """A frozen embedding table and, behind it, trainable rows `learned` [n, D]."""

    def __init__(self, table: nn.Embedding, learned: Tensor) -> None:
        super().__init__()
        self.table = table.requires_grad_(False)
        self.learned = nn.Parameter(learned.clone())

    def forward(self, ids: Tensor) -> Tensor:
        known = self.table.num_embeddings
        old = self.table(ids.clamp(max=known - 1))
        new = self.learned[(ids - known).clamp(min=0)].to(old)
        return torch.where((ids >= known)[..., None], new, old)

    @property
    def weight(self) -> Tensor:
        """The whole table, as an embedding has it."""
        return torch.cat([self.table.weight, self.learned.to(self.table.weight)])


def add_token(text: TextConditioner, token: str, vectors: int, like: str) -> LearnedRows:
    """Give `text` the word `token`, trainable rows that begin as the mean of the rows of `like`.

    Raises InputError for SDXL's two encoders, for a token that is known, and for nothing to begin from.
    """
    if len(text.encoders) != 1:
        raise InputError("textual inversion trains models with one text encoder; take --method lora for this one")
    tokenizer, encoder = text.tokenizers[0], text.encoders[0]
    ids = tokenizer.encode(like)
    if not ids:
        raise InputError(f"init_word={like!r} has no token to begin from; name a word near to what is taught")
    table = _embeddings(encoder).token_embedding
    start = table.weight.detach()[ids].mean(0).expand(vectors, -1)
    _name(text, token, vectors)
    rows = LearnedRows(table, start)
    _embeddings(encoder).token_embedding = rows
    return rows


def save_learned(rows: LearnedRows, token: str, folder: Path) -> None:
    """Write the rows alone, in the layout that diffusers loads."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / FILE) as path:
        save_file({token: rows.learned.detach().cpu().contiguous()}, path, metadata={"format": "pt"})


def load_learned(parts: Components, path: Path) -> list[str]:
    """Add the words in a file or folder, ours or diffusers', to the model, in place; returns them.

    Raises CheckpointError when there is none, and when they were learnt for another width.
    """
    file = find_learned(path)
    try:
        words = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file ({error}); download it again") from error
    for token, vectors in words.items():
        _add(parts.text, token, vectors.reshape(-1, vectors.shape[-1]), file)
    return list(words)


def find_learned(path: Path) -> Path:
    """The file of learnt words at `path`, itself or in a folder. Raises CheckpointError."""
    for file in (path, path / FILE, path / "model" / FILE):
        if file.is_file():
            return file
    raise CheckpointError(f"{path} holds no {FILE}; give a file of learnt words, or the folder finetune wrote")


def _add(text: TextConditioner, token: str, vectors: Tensor, file: Path) -> None:
    encoder: Any = text.encoders[0]
    table = _embeddings(encoder).token_embedding
    if len(text.encoders) != 1 or vectors.shape[-1] != table.embedding_dim:
        raise CheckpointError(
            f"{file}: {token!r} has width {vectors.shape[-1]} and this model reads {table.embedding_dim} from one "
            "encoder; it was made for another kind of model"
        )
    _name(text, token, len(vectors))
    rows = torch.cat([table.weight, vectors.to(table.weight)])
    _embeddings(encoder).token_embedding = nn.Embedding.from_pretrained(rows)
    encoder.config = encoder.config.model_copy(update={"vocab_size": len(rows)})


def _name(text: TextConditioner, token: str, vectors: int) -> None:
    """Tokens for the word, one a vector: `cat`, `cat_1`, …; prompts are written out so (diffusers' rule)."""
    if not token.strip():
        raise InputError("textual inversion needs a word to teach; name one by --trigger, '<my-cat>' for instance")
    names = [token, *(f"{token}_{k}" for k in range(1, vectors))]
    if any(text.tokenizers[0].knows(name) for name in names):
        raise InputError(f"the model knows {token!r} already; take a new word, '<{token.strip('<>')}-2>' for instance")
    text.tokenizers[0].add(names)
    text.longer_words[token] = " ".join(names)


def _embeddings(encoder: Any) -> Any:
    return encoder.text_model.embeddings
