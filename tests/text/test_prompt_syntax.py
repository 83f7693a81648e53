"""Emphasis, BREAK, AND and LoRA tags against the table of other parsers, and errors."""

import math

import pytest

from latentdiff.errors import InputError
from latentdiff.text.prompt_syntax import LoraTag, WeightedText, parse_emphasis, split_and, take_lora_tags
from tests.text.reference import rows_with


def pieces(prompt: str) -> list[list[object]]:
    """The result of `parse_emphasis` in the format of the table."""
    found: list[list[object]] = []
    for k, section in enumerate(parse_emphasis(prompt)):
        found += [["BREAK", -1]] * (k > 0) + [[piece.text, piece.weight] for piece in section]
    return found


def test_pieces_and_weights_equal_the_table() -> None:
    for prompt, expected in rows_with("pieces"):
        assert pieces(prompt) == [[text, pytest.approx(weight, rel=1e-12)] for text, weight in expected], prompt


def test_parts_of_and_equal_the_table() -> None:
    for prompt, expected in rows_with("parts"):
        assert [[part.text, part.weight] for part in split_and(prompt)] == expected, prompt


def test_break_inside_brackets_starts_a_section_of_the_same_weight() -> None:
    assert parse_emphasis("(a BREAK b:1.5)") == [[WeightedText("a", 1.5)], [WeightedText("b", 1.5)]]


@pytest.mark.parametrize("prompt", ["a clock at 12:30", "a", "AND-gate"[3:], "sAND"])
def test_a_prompt_without_and_is_one_unchanged_part(prompt: str) -> None:
    assert split_and(prompt) == [WeightedText(prompt)]


def test_a_number_with_two_points_is_text() -> None:
    assert pieces("(a:1.2.3)") == [["a:1.2.3", 1.1]]


def test_weights_that_overflow_are_refused() -> None:
    with pytest.raises(InputError, match="is infinite; use fewer brackets"):
        parse_emphasis("(a:" + "9" * 400 + ")")


def test_ten_thousand_brackets_are_read() -> None:
    assert parse_emphasis("[" * 10_000 + "a")[0][0].weight == pytest.approx(math.exp(-10_000 * math.log(1.1)))


@pytest.mark.parametrize(
    ("prompt", "rest", "tags"),
    [
        ("a <lora:x>", "a ", [LoraTag("x")]),
        ("<lora:x:0.8> a", " a", [LoraTag("x", 0.8, 0.8)]),
        ("a<lora:x:0.5:0.8>b", "ab", [LoraTag("x", 0.5, 0.8)]),
        ("<lora:my file-2.1:-1><lyco:y:te=0.5:unet=0>", "", [LoraTag("my file-2.1", -1, -1), LoraTag("y", 0.5, 0)]),
        ("<lora:x:unet=0.5>", "", [LoraTag("x", 1, 0.5)]),
        ("<toy> <3:heart> a<b:c", "<toy> <3:heart> a<b:c", []),
    ],
)
def test_lora_tags_leave_the_prompt(prompt: str, rest: str, tags: list[LoraTag]) -> None:
    assert take_lora_tags(prompt) == (rest, tags)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:x:much>", "weight 'much'"),
        ("<lora:x:nan>", "weight 'nan'"),
        ("<lora:x:1:2:3>", "not understood"),
        ("<lora:x:dyn=4>", "not understood"),
        ("<lora::1>", "not understood"),
        ("<hypernet:x:1>", "hypernetwork"),
    ],
)
def test_tags_that_cannot_be_used_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        take_lora_tags(prompt)
