"""Learned words: training, saving in diffusers' format, and loading from several formats."""

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


def test_rows_are_initialised_with_the_mean_of_the_given_words(model_folder: Path) -> None:
    text = read_pipeline(model_folder, torch.float32).text
    ids = text.tokenizers[0].encode("red apple")
    table = text.encoders[0].text_model.embeddings.token_embedding.weight.clone()
    rows = add_token(text, "<toy>", 2, "red apple")
    assert torch.allclose(rows.learned, table[ids].mean(0).expand(2, -1))
    assert torch.equal(rows.weight[: len(table)], table)


def test_words_that_cannot_be_learned_or_loaded_are_errors(model_folder: Path, xl_folder: Path, tmp_path: Path) -> None:
    text = read_pipeline(model_folder, torch.float32).text
    for token, like, message in (
        ("", "cat", "give one with --trigger"),
        ("<toy>", "", "has no tokens; use a word close"),
        ("apple", "cat", "already knows 'apple'"),
    ):
        with pytest.raises(InputError, match=message):
            add_token(text, token, 1, like)
    with pytest.raises(InputError, match="one text encoder"):
        add_token(read_pipeline(xl_folder, torch.float32).text, "<toy>", 1, "cat")
    parts = read_pipeline(model_folder, torch.float32)
    with pytest.raises(CheckpointError, match="contains no learned_embeds"):
        load_learned(parts, tmp_path)
    save_file({"<toy>": torch.zeros(1, 5)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="has width 5 and this model reads 32"):
        load_learned(parts, tmp_path)
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_learned(parts, tmp_path)


def pipeline(folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32")


def test_words_without_a_name_are_named_after_the_file(model_folder: Path, tmp_path: Path) -> None:
    vectors = torch.randn(2, 32)
    save_file({"emb_params": vectors}, tmp_path / "mycat.safetensors")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x"}, tmp_path / "mydog.pt")
    pipe = pipeline(model_folder)
    assert pipe.load_textual_inversion(tmp_path / "mycat.safetensors") == ["mycat"]
    with pytest.raises(CheckpointError, match="is a pickle, a format that can contain code"):
        pipe.load_textual_inversion(tmp_path / "mydog.pt")
    assert pipe.load_textual_inversion(tmp_path / "mydog.pt", allow_pickle=True) == ["mydog"]
    states = pipe.text.encode(["a mycat", "a mydog"]).hidden
    assert torch.equal(states[0], states[1])


def test_a_word_is_not_found_inside_other_words(model_folder: Path, tmp_path: Path) -> None:
    save_file({"cat": torch.randn(1, 32)}, tmp_path / "x.safetensors")
    pipe = pipeline(model_folder)
    tokenizer = pipe.text.tokenizers[0]
    before = {text: tokenizer.encode(text) for text in ("mycatalogue", "cats", "a bobcat")}
    if tokenizer.knows("cat"):
        save_file({"catx": torch.randn(1, 32)}, tmp_path / "x.safetensors")
        before = {text: tokenizer.encode(text) for text in ("mycatxalogue", "catxs", "a bobcatx")}
    (word,) = pipe.load_textual_inversion(tmp_path / "x.safetensors")
    assert {text: tokenizer.encode(text) for text in before} == before
    assert len(tokenizer.encode(f"{word}")) == 1 == len(tokenizer.encode(f"({word})")) - len(tokenizer.encode("()"))


def test_vectors_count_towards_the_token_limit(model_folder: Path, tmp_path: Path) -> None:
    save_file({"<toy>": torch.randn(8, 32)}, tmp_path / "x.safetensors")
    pipe = pipeline(model_folder)
    tokenizer = pipe.text.tokenizers[0]
    pipe.load_textual_inversion(tmp_path / "x.safetensors")
    assert len(tokenizer.encode("<toy> <toy>")) == 16 and tokenizer.model_max_length == 16
    assert pipe.text.lost_words("<toy>") == "" and pipe.text.lost_words("<toy> <toy>") == "<toy>"
    save_file({"<long>": torch.randn(15, 32)}, tmp_path / "long.safetensors")
    with pytest.raises(InputError, match="has 15 vectors, a text has 14 tokens"):
        pipe.load_textual_inversion(tmp_path / "long.safetensors")


def test_words_survive_saving(model_folder: Path, tmp_path: Path) -> None:
    save_file({"<toy>": torch.randn(3, 32)}, tmp_path / "x.safetensors")
    pipe = pipeline(model_folder)
    pipe.load_textual_inversion(tmp_path / "x.safetensors")
    pipe.save_pretrained(tmp_path / "saved")
    again = pipeline(tmp_path / "saved").text
    assert torch.equal(again.encode(["a <toy>"]).hidden, pipe.text.encode(["a <toy>"]).hidden)


def test_sdxl_has_vectors_for_both_encoders(xl_folder: Path, tmp_path: Path) -> None:
    state = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}
    save_file(state, tmp_path / "mycat.safetensors")
    with pytest.raises(CheckpointError, match="has width 32 and 48 and this model reads 32 and 32"):
        pipeline(xl_folder).load_textual_inversion(tmp_path / "mycat.safetensors")
    save_file({"clip_l": state["clip_l"], "clip_g": torch.randn(2, 32)}, tmp_path / "mydog.safetensors")
    pipe = pipeline(xl_folder)
    before = pipe.text.encode(["a mydog"]).hidden
    assert pipe.load_textual_inversion(tmp_path / "mydog.safetensors") == ["mydog"]
    assert all(len(tokenizer.encode("mydog")) == 2 for tokenizer in pipe.text.tokenizers)
    assert not torch.equal(before, pipe.text.encode(["a mydog"]).hidden)


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (0, 32)])
def test_tensors_of_other_shapes_are_one_line(shape: tuple[int, ...], model_folder: Path, tmp_path: Path) -> None:
    save_file({"<toy>": torch.zeros(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="vectors of a word must be"):
        pipeline(model_folder).load_textual_inversion(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(1, 32, dtype=torch.int64), "<toy> contains int64, not floating-point numbers"),
        (torch.full((1, 32), torch.nan), "<toy> contains NaN or infinite numbers"),
    ],
)
def test_numbers_that_cannot_be_vectors_are_named(
    values: torch.Tensor, message: str, model_folder: Path, tmp_path: Path
) -> None:
    save_file({"<toy>": values}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        pipeline(model_folder).load_textual_inversion(tmp_path / "x.safetensors")
