"""Learnt words: trained alone, saved as diffusers reads them, loaded from either."""

import copy
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import read_pipeline
from latentdiff.checkpoints.textual_inversion import FILE, add_token, load_learned, save_learned
from latentdiff.errors import CheckpointError, InputError


@pytest.mark.parametrize("vectors", [1, 3])
def test_saved_words_mean_the_same_here_and_in_diffusers(model_folder: Path, tmp_path: Path, vectors: int) -> None:
    parts = read_pipeline(model_folder, torch.float32)
    before = copy.deepcopy(parts.text)
    rows = add_token(parts.text, "<toy>", vectors, "red apple")
    rows.learned.data += torch.randn_like(rows.learned)
    save_learned(rows, "<toy>", tmp_path)
    wanted = parts.text.encode(["a <toy> face", "a cat face"]).hidden
    assert torch.equal(wanted[1:], before.encode(["a cat face"]).hidden)

    ours = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    assert ours.load_textual_inversion(tmp_path) == ["<toy>"]
    assert torch.allclose(ours.text.encode(["a <toy> face", "a cat face"]).hidden, wanted, atol=1e-6)

    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    theirs.load_textual_inversion(tmp_path / FILE, token="<toy>")
    prompt = theirs.maybe_convert_prompt("a <toy> face", theirs.tokenizer)
    ids = theirs.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(theirs.text_encoder(ids).last_hidden_state, wanted[:1], atol=1e-5)


def test_rows_begin_as_the_mean_of_the_words_they_are_like(model_folder: Path) -> None:
    text = read_pipeline(model_folder, torch.float32).text
    ids = text.tokenizers[0].encode("red apple")
    table = text.encoders[0].text_model.embeddings.token_embedding.weight.clone()
    rows = add_token(text, "<toy>", 2, "red apple")
    assert torch.allclose(rows.learned, table[ids].mean(0).expand(2, -1))
    assert torch.equal(rows.weight[: len(table)], table)


def test_what_cannot_be_learnt_or_loaded(model_folder: Path, xl_folder: Path, tmp_path: Path) -> None:
    text = read_pipeline(model_folder, torch.float32).text
    for token, like, message in (
        ("", "cat", "name one by --trigger"),
        ("<toy>", "", "no token to begin from"),
        ("apple", "cat", "knows 'apple' already"),
    ):
        with pytest.raises(InputError, match=message):
            add_token(text, token, 1, like)
    with pytest.raises(InputError, match="one text encoder"):
        add_token(read_pipeline(xl_folder, torch.float32).text, "<toy>", 1, "cat")
    parts = read_pipeline(model_folder, torch.float32)
    with pytest.raises(CheckpointError, match="holds no learned_embeds"):
        load_learned(parts, tmp_path)
    save_file({"<toy>": torch.zeros(1, 5)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="has width 5 and this model reads 32"):
        load_learned(parts, tmp_path)
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load_learned(parts, tmp_path)
