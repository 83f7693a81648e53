"""Token ids against transformers' CLIPTokenizer, from all versions of its files."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.models import BPE
from transformers import CLIPTokenizer as Theirs

from latentdiff.checkpoints.locate_model import bundled_model
from latentdiff.errors import CheckpointError
from latentdiff.text.tokenizer import END, START, CLIPTokenizer, read_tokenizer

TEXTS = [
    "", " ", "a red apple", "A Red APPLE, it's 3d!", "wow!! 100% don't they'll", "一个红苹果，猫",
    "ｆｕｌｌ　ｗｉｄｔｈ", "こんにちは", "🍎🚀 family: 👩‍👩‍👧", "cafe\u0301 caf\u00e9 \u00c5 \u1e9b\u0323",
    "naïve — “quotes” … №5", "  tabs\tand\n\nlines\u00a0\u2003wide  ", "many words " * 40, "猫" * 90,
    f"{START} a {END} b", "<|ENDOFTEXT|>",
    "مرحبا हिन्दी", "under_score a.b/c #tag @you", "a\u200bb\u0000c", "²½ Ⅷ ３", "<toy> Toy toys a<toy>b",
]  # fmt: skip
SAVED_BY_OPENAI = {
    "model_max_length": 24, "pad_token": END, "do_lower_case": True, "errors": "replace",
    **{
        key: {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True, "rstrip": False,
              "single_word": False}
        for key, token in (("bos_token", START), ("eos_token", END), ("unk_token", END))
    },
}  # fmt: skip


def of_2022(folder: Path, pad: str = END, **more: Any) -> None:
    """`vocab.json`, `merges.txt` and two files on the special tokens, as Stable Diffusion 1 and 2 have them."""
    model = json.loads((bundled_model() / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]).save(str(folder))
    config = SAVED_BY_OPENAI | {"pad_token": pad} | more
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = {key: value for key, value in config.items() if key.endswith("_token")}
    special = {
        key: {k: v for k, v in t.items() if k != "__type"} if isinstance(t, dict) else t for key, t in special.items()
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def added_of_2022(folder: Path) -> None:
    of_2022(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<toy>": 8001, "Toy": 8000}))


def of_2024(folder: Path) -> None:
    """`added_tokens_decoder` in the config, and no other list."""
    of_2022(folder, pad="!")
    names = {
        "content": "",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    tokens = {"0": START, "1": END, "2": "!", "8000": "<toy>"}
    added = {i: names | {"content": token, "special": i != "8000"} for i, token in tokens.items()}
    config = {"model_max_length": 24, "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))


def by_transformers(folder: Path) -> None:
    theirs = Theirs.from_pretrained(bundled_model() / "tokenizer", pad_token="!")
    theirs.add_tokens(["<toy>"])
    theirs.save_pretrained(folder)


def by_us(folder: Path) -> None:
    of_2022(folder, pad="!")
    tokenizer = read_tokenizer(folder)
    for file in folder.iterdir():
        file.unlink()
    for word in ("<toy>", "Toy"):
        tokenizer.add_word(word, 1)
    tokenizer.save(folder)


FORMS: dict[str, Callable[[Path], None]] = {
    "2022": of_2022,
    "2022, padded with !": lambda folder: of_2022(folder, pad="!"),
    "2022, with added words": added_of_2022,
    "2024": of_2024,
    "transformers 5": by_transformers,
    "ours": by_us,
}


def same(ours: CLIPTokenizer, theirs: Any, length: int) -> None:
    assert len(ours) == len(theirs)
    wanted = theirs(TEXTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    for text, mine, other in zip(TEXTS, ours(TEXTS).tolist(), wanted.tolist(), strict=True):
        assert mine == other, text
        ids = theirs(text, add_special_tokens=False, verbose=False).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids).strip()


@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_transformers(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path)
    ours, theirs = read_tokenizer(tmp_path), Theirs.from_pretrained(tmp_path)
    assert ours.model_max_length == theirs.model_max_length
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(ours, name) for name in ends] == [getattr(theirs, name) for name in ends]
    same(ours, theirs, ours.model_max_length)


def test_the_bundled_one_equals_transformers() -> None:
    folder = bundled_model() / "tokenizer"
    same(read_tokenizer(folder), Theirs.from_pretrained(folder), 32)


@pytest.mark.parametrize("form", ["2022, padded with !", "2024"])
@pytest.mark.parametrize("old_files", [False, True])
def test_a_saved_tokenizer_reads_the_same(form: str, old_files: bool, tmp_path: Path) -> None:
    """By our code and by transformers, including versions that do not support `tokenizer.json`."""
    FORMS[form](tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    for word in ("<my cat>", "Mixed"):
        tokenizer.add_word(word, 1)
    tokenizer.save(tmp_path / "saved")
    if old_files:
        (tmp_path / "saved" / "tokenizer.json").unlink()
    theirs = Theirs.from_pretrained(tmp_path / "saved")
    same(tokenizer, theirs, 24)
    same(read_tokenizer(tmp_path / "saved"), theirs, 24)
    assert theirs.pad_token == "!" and theirs.model_max_length == 24


def test_added_words_equal_transformers() -> None:
    folder = bundled_model() / "tokenizer"
    ours, theirs = read_tokenizer(folder), Theirs.from_pretrained(folder)
    before = copy.deepcopy(ours)
    for word in ("<toy>", "<toy>_1", "Wörd", "apple-ish"):
        ours.add_word(word, 1)
    theirs.add_tokens(["<toy>", "<toy>_1", "Wörd", "apple-ish"])
    same(ours, theirs, 32)
    assert ours.encode("a <TOY> <toy>_1 wörd") == theirs("a <TOY> <toy>_1 wörd", add_special_tokens=False).input_ids
    assert ours.knows("<toy>") and ours.knows("apple") and not ours.knows("<tay>") and not before.knows("<toy>")
    assert len(ours) == len(before) + 4


def test_rows_are_padded_and_truncated_to_the_length(tmp_path: Path) -> None:
    of_2022(tmp_path, pad="!")
    tokenizer = read_tokenizer(tmp_path)
    ids = tokenizer(["apple", "apple " * 30])
    assert ids.dtype == torch.int64 and ids.shape == (2, 24)
    assert ids[0].tolist()[2:] == [1] + [2] * 21
    assert ids[1, 0] == 0 and ids[1, -1] == 1 and len(set(ids[1, 1:-1].tolist())) == 1


@pytest.mark.parametrize("length", [None, 1000000000000000019884624838656])
def test_the_default_length_is_that_of_clip(length: int | None, tmp_path: Path) -> None:
    of_2022(tmp_path, model_max_length=length)
    if length is None:
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "model_max_length"}))
    assert read_tokenizer(tmp_path)(["a"]).shape == (1, 77)


@pytest.mark.parametrize("length", [0, 2, -5, 16.0, "77", None, True, float("nan"), [77]])
def test_a_length_that_is_no_number_of_tokens_is_named(length: Any, tmp_path: Path) -> None:
    of_2022(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: model_max_length=.* must be an integer of 3"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", None, "contains neither tokenizer.json nor vocab.json with merges.txt"),
        ("merges.txt", None, "contains neither"),
        ("vocab.json", "{", "contains no readable CLIP tokenizer"),
        ("merges.txt", "a b c d", "contains no readable CLIP tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json contains list instead of keys and values"),
        ("tokenizer.json", '{"model": {}}', "contains no readable CLIP tokenizer"),
        ("tokenizer.json", "{", "tokenizer.json is not JSON"),
    ],
)
def test_damaged_files_are_named_in_the_error(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    of_2022(tmp_path)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
