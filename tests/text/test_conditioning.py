"""Text conditioning against what diffusers' pipelines compute."""

from pathlib import Path

import diffusers
import pytest
import torch

from latentdiff.text.conditioning import TextConditioner
from tests.small import as_transformers, small_text_encoder, small_tokenizer

PROMPTS = ["a red apple", "猫"]


def test_one_encoder_gives_its_last_states(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    encoder = small_text_encoder(tokenizer)
    text = TextConditioner([tokenizer], [encoder])
    theirs = as_transformers(encoder, tmp_path / "encoder"), as_transformers(tokenizer, tmp_path / "tokenizer")
    pipe = diffusers.StableDiffusionPipeline(None, *theirs, None, None, None, None, requires_safety_checker=False)
    expected, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.allclose(text.encode(PROMPTS).hidden, expected, atol=1e-5)
    assert torch.allclose(text.encode(["", ""]).hidden, empty, atol=1e-5)
    assert text.encode(PROMPTS).pooled is None


def test_two_encoders_give_states_before_the_last_and_pooled(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    encoders = [small_text_encoder(tokenizer), small_text_encoder(tokenizer, projection=True)]
    text = TextConditioner([tokenizer, tokenizer], encoders).encode(PROMPTS)
    theirs = [as_transformers(encoder, tmp_path / str(k)) for k, encoder in enumerate(encoders)]
    words = as_transformers(tokenizer, tmp_path / "tokenizer")
    pipe = diffusers.StableDiffusionXLPipeline(None, *theirs, words, words, None, None)
    hidden, _, pooled, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    assert text.pooled is not None
    assert torch.allclose(text.hidden, hidden, atol=1e-5)
    assert torch.allclose(text.pooled, pooled, atol=1e-5)


@pytest.mark.parametrize(("prompt", "lost"), [("a red apple", ""), ("a cat face " * 4 + "a rocket , 3 d", ", 3 d")])
def test_words_past_the_limit_are_known(prompt: str, lost: str) -> None:
    text = TextConditioner([small_tokenizer()], [])
    assert text.lost_words(prompt).replace(" ", "").endswith(lost.replace(" ", ""))
    assert bool(text.lost_words(prompt)) == bool(lost)
