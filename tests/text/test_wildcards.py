"""Wildcards and variants: choices by seed, all combinations, files of one folder, and limits."""

import os
from pathlib import Path

import pytest

from latentdiff.errors import InputError
from latentdiff.text import wildcards
from latentdiff.text.wildcards import Wildcards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "animal.txt": "\ufeff# pets\ncat\r\n\ndog {big|small}\n",
        "place/sea.txt": "sea",
        "place/land.txt": "hill\nwood",
        "lists.yaml": "colour:\n  - red\n  - {text: blue, weight: 2}\n",
        "place/json.json": '{"sky": ["cloud"]}',
        "loop.txt": "__loop__ again",
        "a.txt": "__b__ " * 8, "b.txt": "__c__ " * 8, "c.txt": "__sea__ " * 80,
        ".hidden.txt": "x",
        "notes.md": "x",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "words" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "words" / name).write_text(text, encoding="utf-8")
    return tmp_path / "words"


def test_equal_seeds_choose_equally_and_seeds_cover_all_choices(folder: Path) -> None:
    words = Wildcards(folder)
    template = "a {red|green} __animal__, (x:1.2) [a:b:0.4] [c|d] <lora:x:0.8> 猫"
    drawn = [words.draw(template, seed) for seed in range(40)]
    assert drawn == [Wildcards(folder).draw(template, seed) for seed in range(40)]
    expected = [f"a {c} {a}, (x:1.2) [a:b:0.4] [c|d] <lora:x:0.8> 猫"
                for c in ("red", "green") for a in ("cat", "dog big", "dog small")]  # fmt: skip
    assert set(drawn) == set(expected) and words.all(template) == expected


def test_combinations_with_a_choice_inside_are_the_same_each_time(folder: Path) -> None:
    assert Wildcards(folder).all("{~a|b|c|d|e|f|g|h} {d|e}") == Wildcards(folder).all("{~a|b|c|d|e|f|g|h} {d|e}")


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("__place/*__", ["cloud", "hill", "sea", "wood"]),
        ("__place/sea__", ["sea"]),
        ("__sea__", ["sea"]),
        ("__colour__", ["blue", "blue", "red"]),
        ("__place/sky__", ["cloud"]),
        ("{2$$ and $$red|blue}", ["red and blue", "blue and red"]),
        ("${x={a|b}}${x}${x}", ["aa", "ab", "ba", "bb"]),
    ],
)
def test_all_combinations(prompt: str, values: list[str], folder: Path) -> None:
    assert Wildcards(folder).all(prompt) == values


@pytest.mark.parametrize("prompt", ["", "100% a # b", "a_b $5 } // c", "[a|b] (c) \\(d\\)"])
def test_other_prompts_are_not_changed(prompt: str, folder: Path) -> None:
    assert Wildcards(folder).draw(prompt, 1) == prompt and Wildcards(folder).all(prompt) == [prompt]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a __animals__", "__animals__ is not a wildcard of .*; did you mean 'animal'?"),
        ("__../secret__", "__../secret__ is not a wildcard"),
        ("__/etc/passwd__", "is not a wildcard"),
        ("__hidden__", "is not a wildcard"),
        ("__loop__", "refers to itself"),
        ("a {red|green", "cannot be expanded .*; check its braces"),
        ("a {red|green} ${x}", "cannot be expanded .*Variable x is not defined"),
        ("{" * 30 + "a" + "}" * 30, "has 30 braces inside each other, more than 20"),
        ("__a__", "reads wildcards more than 200 times"),
    ],
)
def test_prompts_that_cannot_be_expanded_are_one_line_errors(prompt: str, message: str, folder: Path) -> None:
    for expand in (Wildcards(folder).all, lambda text: Wildcards(folder).draw(text, 1)):
        with pytest.raises(InputError, match=message) as raised:
            expand(prompt)
        assert "\n" not in str(raised.value)


def test_too_many_combinations(folder: Path) -> None:
    with pytest.raises(InputError, match="has more than 10000 combinations; use --expand random"):
        Wildcards(folder).all("{a|b|c|d|e|f|g|h|i|j}" * 5)


def test_a_wildcard_without_a_folder_names_the_option() -> None:
    with pytest.raises(InputError, match=r"__animal__ is a wildcard; pass the folder of animal.txt with --wildcards"):
        Wildcards().draw("__animal__", 1)
    assert Wildcards().all("{a|b}") == ["a", "b"]


def test_folders_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="none is not a folder"):
        Wildcards(folder / "none")
    (folder / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"bad.yaml cannot be read \(while parsing"):
        Wildcards(folder)
    (folder / "bad.yaml").unlink()
    (folder / "bad.txt").write_bytes(b"b\xe4r")
    with pytest.raises(InputError, match=r"bad.txt cannot be read \('utf-8' codec"):
        Wildcards(folder)
    (folder / "bad.txt").unlink()
    monkeypatch.setattr(wildcards, "MAX_LISTS", 3)
    with pytest.raises(InputError, match="has more than 3 lists"):
        Wildcards(folder)
    monkeypatch.setattr(wildcards, "MAX_BYTES", 20)
    with pytest.raises(InputError, match="has more than 10000 files or 20 bytes"):
        Wildcards(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_files_outside_the_folder_are_errors(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("key")
    (folder / "inside.txt").symlink_to(folder / "animal.txt")
    (folder / "linked").symlink_to(secret)
    assert Wildcards(folder).all("__inside__")[0] == "cat"
    with pytest.raises(InputError, match="is not a wildcard"):
        Wildcards(folder).all("__linked/key__")
    (folder / "key.txt").symlink_to(secret / "key.txt")
    with pytest.raises(InputError, match=r"key.txt is a link to a file outside .*; copy the file into"):
        Wildcards(folder)
