"""Constructs that are not closed are parsed in linear time: each request to a server may have a long prompt of them.

The texts are so long that a parser with quadratic time would run for minutes or hours.
"""

from collections.abc import Callable
from contextlib import suppress

import pytest

from latentdiff.cli.expansion import SYNTAX
from latentdiff.cli.prompts_file import QUOTED
from latentdiff.errors import InputError
from latentdiff.recipe.infotext import parse_infotext
from latentdiff.text.prompt_schedule import schedule_prompt
from latentdiff.text.prompt_syntax import parse_emphasis, split_and, take_lora_tags

LENGTH = 200_000


def scheduled(text: str) -> object:
    return schedule_prompt(text, 2)


@pytest.mark.parametrize(
    ("parse", "head", "unit", "tail"),
    [
        (take_lora_tags, "", "<a:", ""),
        (take_lora_tags, "", "<lora:x", ""),
        (take_lora_tags, "<a>", "<", ":"),
        (parse_emphasis, "", "(a", ""),
        (parse_emphasis, "", "[a", ""),
        (parse_emphasis, "", "(a:", "1"),
        (parse_emphasis, "(a:", "1", ""),
        (parse_emphasis, "", " ", "x"),
        (parse_emphasis, "", ":", ""),
        (split_and, "a AND b:", "1", "x"),
        (split_and, "a AND b", ": ", "x"),
        (scheduled, "", "[a:", ""),
        (scheduled, "", "[a|", "]"),
        (scheduled, "[a:", "1", "x]"),
        (SYNTAX.search, "{", "|", ""),
        (SYNTAX.search, "", "{a|", ""),
        (SYNTAX.search, "__", "a", ""),
        (QUOTED.match, ' "', "\\", ""),
        (QUOTED.match, ' "', '\\"', "x"),
        (parse_infotext, "", "a ", ""),
        (parse_infotext, "a: 1", " ", "x"),
        (parse_infotext, "", 'a: "{', ""),
    ],
)
def test_long_texts_that_are_not_closed_are_parsed(
    parse: Callable[[str], object], head: str, unit: str, tail: str
) -> None:
    with suppress(InputError):  # of weights that overflow
        parse(head + unit * (LENGTH // len(unit)) + tail)


def test_a_quoted_value_may_end_in_a_backslash() -> None:
    match = QUOTED.match(' "C:\\loras\\" --steps 3')
    assert match is not None and match[2] == "C:\\loras\\"


def test_brackets_of_both_kinds_may_cross() -> None:
    parts = [(part.text, round(part.weight, 6)) for part in parse_emphasis("(a[b:2)c]")[0]]
    assert parts == [("a", 2.0), ("b", round(2 / 1.1, 6)), ("c", round(1 / 1.1, 6))]
