"""Files of prompts: the meaning of lines, and errors that name the line."""

from pathlib import Path
from typing import Any

import pytest

from latentdiff.cli.prompts_file import PromptLine, read_prompts_file
from latentdiff.errors import InputError


def read(folder: Path, text: str, name: str = "prompts.txt") -> list[PromptLine]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_prompts_file(folder / name)


def test_lines_keep_their_numbers_and_comments_are_skipped(tmp_path: Path) -> None:
    lines = read(tmp_path, "\ufeffa red apple\r\n\r\n# fruit\r\n  猫 #1, 3--4 -- a cat's face \u2028 (x:1.2)\r\n")
    assert lines == [PromptLine(1, "a red apple"), PromptLine(4, "猫 #1, 3--4 -- a cat's face \u2028 (x:1.2)")]


@pytest.mark.parametrize(
    ("line", "prompt", "settings"),
    [
        ("a cat --steps 20", "a cat", {"steps": 20}),
        ("a cat's --steps 20 --cfg_scale=4.5", "a cat's", {"steps": 20, "guidance_scale": 4.5}),
        ("a --clip-skip 1", "a", {"clip_skip": 1}),
        ('--prompt "a cat" --negative_prompt "x, --steps 3"', "a cat", {"negative_prompt": "x, --steps 3"}),
        (r'a --negative_prompt "\"y\" \(z\)"', "a", {"negative_prompt": r'"y" \(z\)'}),
        ("a --prompt_2 b c --width 64 --height 32", "a", {"prompt_2": "b c", "width": 64, "height": 32}),
        ('--prompt ""', "", {}),
        ("a --seed -1", "a", {}),
        ("a --seed 7 --negative_prompt 'it is' red", "a", {"seed": 7, "negative_prompt": "'it is' red"}),
        ('a --sampler_name "DPM++ 2M Karras"', "a", {"sampler": "dpmpp_2m", "spacing": "karras"}),
        ("a --sampler_name Euler a --scheduler Automatic", "a", {"sampler": "euler_ancestral"}),
        ("a --sampler_name DPM++ 2M Karras --scheduler Beta", "a", {"sampler": "dpmpp_2m", "spacing": "beta"}),
    ],
)  # fmt: skip
def test_options_of_a_line(line: str, prompt: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, line) == [PromptLine(1, prompt, None, settings)]


def test_json_lines_have_the_same_options(tmp_path: Path) -> None:
    text = '{"prompt": "a --steps 3", "steps": 20, "n_iter": 2}\n{"prompt": "b", "sampler_name": "Euler"}\n'
    expected = [PromptLine(1, "a --steps 3", 2, {"steps": 20}), PromptLine(2, "b", None, {"sampler": "euler"})]
    assert read(tmp_path, text, "prompts.jsonl") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --ar 16:9", "'ar' is not an option of a line; known: clip_skip, eta, guidance_scale"),
        ("a cat --step 9", "'step' is not an option of a line; did you mean 'steps'?"),
        ("a --steps many", "steps='many': Input should be a valid integer"),
        ("a --steps", "--steps has no value"),
        ("a --steps --seed 3", "--steps has no value"),
        ("a --steps 3 --steps 4", "steps is given twice"),
        ("a --prompt b", "prompt is given twice"),
        ("--steps 3", "no prompt; write it before the options"),
        ("a --num_images 0", "num_images='0': Input should be greater than or equal to 1"),
        ("a --sampler_name Eular", "Sampler not found: 'Eular'; did you mean 'Euler'?"),
        ("a --seed 9223372036854775808", "seed='9223372036854775808': Input should be less than"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, f"a red apple\n\n{line}\nb --neither")
    assert str(raised.value).startswith(f"{tmp_path / 'prompts.txt'}, line 3: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red apple", "line 1: not JSON"),
        ('{"prompt": "a"}\n["b"]', "line 2: ['b'] is not an object"),
        ('{"steps": 3}', "line 1: no prompt"),
        ('{"prompt": "a", "seed": 1.5}', "line 1: seed=1.5: Input should be a valid integer"),
        ("[" * 100_000, "line 1: not JSON"),
    ],
)
def test_bad_json_lines_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, text, "prompts.jsonl")
    assert message in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a\nb\xe4r\n")
    for name, message in (("latin.txt", "line 2: not UTF-8 text"), ("none.txt", "cannot be read (No such file")):
        with pytest.raises(InputError) as raised:
            read_prompts_file(tmp_path / name)
        assert message in str(raised.value)
    with pytest.raises(InputError, match="has no prompts; write one per line"):
        read(tmp_path, "# nothing\n\n")
