"""Textual inversion (Gal et al. 2023): add new words to a frozen model for training, save and load them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.tensor_files import READ_ERRORS, TensorFile, damaged, open_tensor_file, problem_of
from latentdiff.errors import CheckpointError, InputError
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.text.tokenizer import word_names

FILE = "learned_embeds.safetensors"
PARAMETERS = "string_to_param."  # A1111's .pt files


class LearnedRows(nn.Module):
    """A frozen embedding table, followed by trainable rows `learned` [n, D]."""

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
        """The complete embedding table."""
        return torch.cat([self.table.weight, self.learned.to(self.table.weight)])


def add_token(text: TextConditioner, token: str, vectors: int, like: str) -> LearnedRows:
    """Add the word `token` to `text`: trainable rows, initialised with the mean of the rows of `like`.

    Raises InputError for SDXL's two encoders, for a known token, and if `like` has no tokens.
    """
    if len(text.encoders) != 1:
        raise InputError("textual inversion trains models with one text encoder; use --method lora for this model")
    tokenizer, encoder = text.tokenizers[0], text.encoders[0]
    ids = tokenizer.encode(like)
    if not ids:
        raise InputError(f"init_word={like!r} has no tokens; use a word close to the new concept")
    table = _embeddings(encoder).token_embedding
    start = table.weight.detach()[ids].mean(0).expand(vectors, -1)
    _check_name(text, token, vectors)
    tokenizer.add_word(token, vectors)
    rows = LearnedRows(table, start)
    _embeddings(encoder).token_embedding = rows
    return rows


def save_learned(rows: LearnedRows, token: str, folder: Path) -> None:
    """Write only the learned rows, in the layout that diffusers loads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({token: rows.learned.detach().cpu().contiguous()}, folder / FILE, metadata={"format": "pt"})


def load_learned(parts: Components, path: Path, allow_pickle: bool = False) -> list[str]:
    """Add the learned words in a file or folder to the model, in place; returns the words.

    Reads our files, diffusers', A1111's (`emb_params`, or `.pt` with `allow_pickle`) and SDXL's with vectors for both
    encoders. Raises CheckpointError for other files and for files for another kind of model; the model is then
    unchanged.
    """
    file = find_learned(path)
    words = words_in(file, open_tensor_file(file, allow_pickle))
    fitting = {token: _fit(parts.text, token, vectors, file) for token, vectors in words.items()}
    for token, vectors in fitting.items():
        _check_name(parts.text, token, len(vectors[0]))
    for token, vectors in fitting.items():
        for k, rows in enumerate(vectors):
            _add(parts.text, k, token, rows)
    return list(words)


def find_learned(path: Path) -> Path:
    """The file of learned words at `path`, which may be a folder. Raises CheckpointError."""
    for file in (path, path / FILE, path / "model" / FILE):
        if file.is_file():
            return file
    raise CheckpointError(f"{path} contains no {FILE}; give a file of learned words, or the folder that finetune wrote")


def words_in(file: Path, opened: TensorFile) -> dict[str, list[Tensor]]:
    """Vectors [n, D] of each word, one tensor per text encoder. A word without a name is named after the file."""
    try:
        tensors = {key: opened.get(key) for key in opened.shapes}
    except READ_ERRORS as error:
        raise damaged(file, error) from error
    for key, tensor in tensors.items():
        if (problem := problem_of(tensor)) is not None:
            raise CheckpointError(f"{file}: {key[:80]} {problem}; use another file")
        if tensor.ndim not in (1, 2) or 0 in tensor.shape:
            raise CheckpointError(f"{file}: {key[:80]} is {list(tensor.shape)}; vectors of a word must be [n, width]")
    rows = {key: tensor.reshape(-1, tensor.shape[-1]) for key, tensor in tensors.items()}
    if not rows:
        raise CheckpointError(f"{file} contains no learned word; give a file written by a training program")
    if rows.keys() <= {"clip_l", "clip_g"}:
        return {file.stem: [rows[key] for key in ("clip_l", "clip_g") if key in rows]}
    unnamed = [key for key in rows if key == "emb_params" or key.startswith(PARAMETERS)]
    if len(unnamed) == 1:
        return {file.stem: [rows[unnamed[0]]]}
    return {key: [value] for key, value in rows.items()}


def _fit(text: TextConditioner, token: str, vectors: list[Tensor], file: Path) -> list[Tensor]:
    """Check that the vectors are as wide as each encoder's table. Raises CheckpointError."""
    need = [_embeddings(encoder).token_embedding.weight.shape[1] for encoder in text.encoders]
    have = [rows.shape[1] for rows in vectors]
    if have != need:
        have_text, need_text = (" and ".join(map(str, sizes)) for sizes in (have, need))
        raise CheckpointError(
            f"{file}: {token[:80]!r} has width {have_text} and this model reads {need_text}; "
            "use a file for this kind of model"
        )
    if len({len(rows) for rows in vectors}) > 1:
        raise CheckpointError(f"{file}: {token[:80]!r} has a different number of vectors for each encoder")
    return vectors


def _add(text: TextConditioner, k: int, token: str, vectors: Tensor) -> None:
    encoder: Any = text.encoders[k]
    text.tokenizers[k].add_word(token, len(vectors))
    table = _embeddings(encoder).token_embedding
    rows = torch.cat([table.weight, vectors.to(table.weight)])
    _embeddings(encoder).token_embedding = nn.Embedding.from_pretrained(rows)
    encoder.config = encoder.config.model_copy(update={"vocab_size": len(rows)})


def _check_name(text: TextConditioner, token: str, vectors: int) -> None:
    """Raise InputError for a word that is invalid, known, or has more vectors than a prompt has tokens."""
    if not token.strip():
        raise InputError("textual inversion needs a word to learn; give one with --trigger, for example '<my-cat>'")
    if any(tokenizer.knows(name) for tokenizer in text.tokenizers for name in word_names(token, vectors)):
        raise InputError(f"the model already knows {token!r}; use a new word, for example '<{token.strip('<>')}-2>'")
    if vectors > (most := text.tokenizers[0].model_max_length - 2):
        raise InputError(f"{token!r} has {vectors} vectors, a text has {most} tokens; learn fewer")


def _embeddings(encoder: Any) -> Any:
    return encoder.text_model.embeddings
