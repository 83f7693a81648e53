"""Prompt schedules against the table of another parser, and unpaired brackets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentdiff.text.prompt_schedule import TextFrom, schedule_prompt
from tests.text.reference import rows_with


def per_step(changes: list[TextFrom], steps: int) -> list[str]:
    return [[change.text for change in changes if change.step <= step][-1] for step in range(steps)]


def test_the_text_of_each_step_equals_the_table() -> None:
    for prompt, schedule in rows_with("schedule"):
        expected = [next(text for last, text in schedule if step <= last) for step in range(1, 11)]
        assert per_step(schedule_prompt(prompt, 10), 10) == expected, prompt


def test_only_changes_are_listed() -> None:
    assert schedule_prompt("a [b:c:0.5] [d|d]", 4) == [(0, "a b d"), (2, "a c d")]
    assert schedule_prompt("[a:b:2]", 1) == [(0, "a")]


@pytest.mark.parametrize("when", ["1e400", "9" * 400])
def test_a_change_after_the_last_step_never_happens(when: str) -> None:
    assert schedule_prompt(f"[a:b:{when}]", 5) == [(0, "a")]


def test_brackets_beyond_the_depth_limit_are_text() -> None:
    assert schedule_prompt("[" * 5000 + "a:b:1]", 3) == [(0, "[" * 4999 + "a"), (1, "[" * 4999 + "b")]
    deep = "[" * 5000 + "a" + ":1]" * 5000
    assert schedule_prompt(deep, 1)[0].text.startswith("[")


@given(st.text("ab:|()[]\\ 1.", max_size=30), st.integers(1, 5))
def test_any_text_is_parsed(prompt: str, steps: int) -> None:
    changes = schedule_prompt(prompt, steps)
    assert [step for step, _ in changes] == sorted({step for step, _ in changes}) and changes[0].step == 0
    if "[" not in prompt:
        assert changes == [(0, prompt)]
