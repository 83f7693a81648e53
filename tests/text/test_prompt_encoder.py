"""Conditioning of each step: schedules, AND, and the cache between calls."""

import math
import warnings

import pytest
import torch

from latentdiff.models.conditioning import PromptConditioning
from latentdiff.text.prompt_encoder import KEPT_TEXTS, PromptEncoder
from latentdiff.text.text_conditioner import PromptOptions, TextConditioner
from tests.small import small_text_encoder, small_tokenizer

A1111, PLAIN = PromptOptions(), PromptOptions("plain")
TIMESTEPS = [900.0, 700.0, 700.0, 500.0, 500.0, 300.0]  # Heun's: each inner level twice


@pytest.fixture
def encoder() -> PromptEncoder:
    tokenizer = small_tokenizer()
    encoders = [small_text_encoder(tokenizer), small_text_encoder(tokenizer, projection=True)]
    return PromptEncoder(TextConditioner([tokenizer, tokenizer], encoders))


def same(prompt: PromptConditioning, expected: list[tuple[float, list[str]]], encoder: PromptEncoder) -> bool:
    starts = [start for start, _ in prompt.spans] == [start for start, _ in expected]
    rows = [encoder.text.encode_prompt(texts * (3 - len(texts)), A1111) for _, texts in expected]
    return starts and all(torch.equal(a.hidden, b.hidden) for (_, a), b in zip(prompt.spans, rows, strict=True))


def test_a_schedule_changes_at_the_level_of_its_step(encoder: PromptEncoder) -> None:
    found = encoder.scheduled(["a [red:cat:0.5] face"], TIMESTEPS, A1111)
    assert same(found, [(math.inf, ["a red face"]), (500.0, ["a cat face"])], encoder)


@pytest.mark.parametrize(
    ("when", "omitted", "starts"),
    [
        ("0.5", 2, [math.inf, 300.0]),
        ("0.5", 4, [math.inf]),
        ("0.25", 4, [math.inf, 500.0]),
        ("1", 4, [math.inf, 700.0]),
    ],
)
def test_steps_that_are_omitted_count_for_fractions_only(
    when: str, omitted: int, starts: list[float], encoder: PromptEncoder
) -> None:
    found = encoder.scheduled([f"a [red:cat:{when}] face"], TIMESTEPS, A1111, omitted)
    assert same(found, list(zip(starts, [["a red face"], ["a cat face"]], strict=False)), encoder)
    (joined,) = encoder.positive([f"a [red:cat:{when}] face"], TIMESTEPS, A1111, omitted)
    assert [start for start, _ in joined.spans] == starts


def test_schedules_of_two_prompts_change_at_their_own_steps(encoder: PromptEncoder) -> None:
    found = encoder.scheduled(["[a:cat:1]", "[red:apple:3]"], TIMESTEPS, A1111)
    texts = [(math.inf, ["a", "red"]), (700.0, ["cat", "red"]), (300.0, ["cat", "apple"])]
    assert same(found, texts, encoder)


def test_and_joins_weighted_prompts_each_with_its_schedule(encoder: PromptEncoder) -> None:
    first, second = encoder.positive(["a red apple AND [a:cat:1] :0.5"], TIMESTEPS, A1111)
    assert (first.weight, second.weight) == (1, 0.5)
    assert same(first, [(math.inf, ["a red apple"])], encoder)
    assert same(second, [(math.inf, ["a"]), (700.0, ["cat"])], encoder)


def test_in_a_negative_prompt_and_is_text(encoder: PromptEncoder) -> None:
    assert same(encoder.scheduled(["red AND cat"], TIMESTEPS, A1111), [(math.inf, ["red AND cat"])], encoder)


def test_plain_prompts_are_text_and_the_lost_part_is_named(encoder: PromptEncoder) -> None:
    with pytest.warns(UserWarning, match="this part is lost: 'red apple'"):
        (found,) = encoder.positive(["cat face " * 7 + "red apple"], TIMESTEPS, PLAIN)
    ((start, row),) = found.spans
    assert start == math.inf and torch.equal(row.hidden, encoder.text.encode(["cat face " * 7]).hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = encoder.positive(["[a|b] AND (c:2)"], TIMESTEPS, PLAIN)
        long = encoder.encode(["cat face " * 7 + "red apple"], A1111)
    assert len(found.spans) == 1 and long.tokens == 32


def test_the_latest_prompts_are_kept(encoder: PromptEncoder) -> None:
    first = encoder.encode(["a"], A1111)
    assert encoder.encode(["a"], A1111) is first and encoder.encode(["a"], PLAIN) is not first
    for k in range(KEPT_TEXTS):
        encoder.encode(["a"], A1111)
        encoder.encode([f"{k}"], A1111)
    assert encoder.encode(["a"], A1111) is first and len(encoder._kept) == KEPT_TEXTS
    encoder.clear()
    assert encoder.encode(["a"], A1111) is not first
