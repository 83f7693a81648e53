"""Texts, options and LoRAs of a call, and invalid prompts."""

from typing import Any

import pytest

from latentdiff.errors import InputError
from latentdiff.inputs.prompts import ImagePrompts, read_options, read_prompts
from latentdiff.text.text_conditioner import PromptOptions


def read(prompts: list[str], encoders: int = 2, syntax: str = "a1111", **others: Any) -> ImagePrompts:
    none = [None] * len(prompts)
    texts = [others.get(name, none) for name in ("negatives", "prompts_2", "negatives_2")]
    return read_prompts(prompts, *texts, read_options(syntax, 0, 2), encoders)


def test_texts_are_paired_by_encoder() -> None:
    found = read(["a", "b"], negatives=["c", None], prompts_2=[None, "d"], negatives_2=["", "e"])
    assert found.positives == [("a",), ("b", "d")]
    assert found.negatives == [("c", ""), ("", "e")]
    assert read(["a"]).negatives == [None] and read(["a"], negatives=[""]).negatives == [("",)]


def test_lora_tags_become_weights_for_unet_and_text() -> None:
    found = read(["a <lora:x:0.5:1><lora:y>", "b<lora:y:1><lora:x:0.5:1>"])
    assert found.positives == [("a ",), ("b",)]
    assert found.loras == {"x": (1.0, 0.5), "y": (1.0, 1.0)}
    assert read(["<lora:x:1> <lora:x:-0.25>"]).loras == {"x": (0.75, 0.75)}
    assert read(["a"], prompts_2=["b <lora:x>"]).loras == {"x": (1.0, 1.0)}


def test_plain_prompts_keep_their_tags() -> None:
    found = read(["a <lora:x> AND b"], syntax="plain", prompts_2=["c"], negatives=["<lora:y>"])
    assert found.positives == [("a <lora:x> AND b", "c")] and not found.loras


@pytest.mark.parametrize(
    ("prompts", "others", "message"),
    [
        (["a"], {"encoders": 1, "prompts_2": ["b"]}, "prompt_2 is for models with two text encoders"),
        (["a"], {"encoders": 1, "negatives_2": ["b"]}, "negative_prompt_2 is for models with two"),
        (["a AND b"], {"prompts_2": ["c"]}, "AND cannot be used with prompt_2"),
        (["a"], {"negatives": ["b <lora:x>"]}, "<lora:x> is in a negative prompt; move it"),
        (["a <lora:x:1>", "b <lora:x:0.5>"], {}, r"use different LoRAs or weights \(x\); use one call for each"),
    ],
)
def test_invalid_prompts_are_refused(prompts: list[str], others: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(prompts, **others)


def test_options_are_checked() -> None:
    assert read_options("plain", 2, 2) == PromptOptions("plain", 2)
    with pytest.raises(InputError, match="prompt_syntax='a111' is unknown; did you mean 'a1111'"):
        read_options("a111", 0, 2)
    for skip in (-1, 3):
        with pytest.raises(InputError, match=f"clip_skip={skip} must be from 0 to 2"):
            read_options("a1111", skip, 2)
