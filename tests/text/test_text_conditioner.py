"""Text conditioning against diffusers' pipelines."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from latentdiff.text.chunks import split_chunks
from latentdiff.text.prompt_syntax import parse_emphasis
from latentdiff.text.text_conditioner import PromptOptions, TextConditioner, emphasize
from tests.small import as_transformers, small_text_encoder, small_tokenizer

PROMPTS = ["a red apple", "猫"]
A1111, PLAIN = PromptOptions(), PromptOptions("plain")
LONG = "a (red:1.4) apple, a [cat] face, a ((rocket)), fluent 3d style, wrong colours BREAK (猫:0.5)"


def conditioner(xl: bool) -> TextConditioner:
    tokenizer, layers = small_tokenizer(), {"num_hidden_layers": 4}
    encoders = [small_text_encoder(tokenizer, **layers)]
    encoders += [small_text_encoder(tokenizer, projection=True, **layers)] if xl else []
    for encoder in encoders:  # a trained norm gives states of a mean that is not 0
        torch.nn.init.normal_(encoder.text_model.final_layer_norm.bias, 0.2)
    return TextConditioner([tokenizer] * len(encoders), encoders)


def diffusers_pipe(text: TextConditioner, folder: Path) -> Any:
    theirs = [as_transformers(encoder, folder / str(k)) for k, encoder in enumerate(text.encoders)]
    words = as_transformers(text.tokenizers[0], folder / "tokenizer")
    if len(theirs) == 2:
        return diffusers.StableDiffusionXLPipeline(None, *theirs, words, words, None, None)
    vars(theirs[0])["text_model"] = theirs[0]  # where diffusers looks for the norm, which transformers 5 moved
    return diffusers.StableDiffusionPipeline(
        None, theirs[0], words, None, None, None, None, requires_safety_checker=False
    )


def test_one_encoder_returns_its_last_states(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    encoder = small_text_encoder(tokenizer)
    text = TextConditioner([tokenizer], [encoder])
    theirs = as_transformers(encoder, tmp_path / "encoder"), as_transformers(tokenizer, tmp_path / "tokenizer")
    pipe = diffusers.StableDiffusionPipeline(None, *theirs, None, None, None, None, requires_safety_checker=False)
    expected, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    assert torch.allclose(text.encode(PROMPTS).hidden, expected, atol=1e-5)
    assert torch.allclose(text.encode(["", ""]).hidden, empty, atol=1e-5)
    assert text.encode(PROMPTS).pooled is None


def test_two_encoders_return_penultimate_and_pooled_states(tmp_path: Path) -> None:
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
def test_words_over_the_token_limit_are_reported(prompt: str, lost: str) -> None:
    text = TextConditioner([small_tokenizer()], [])
    assert text.lost_words(prompt).replace(" ", "").endswith(lost.replace(" ", ""))
    assert bool(text.lost_words(prompt)) == bool(lost)


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip_equals_diffusers(xl: bool, clip_skip: int, tmp_path: Path) -> None:
    text = conditioner(xl)
    ours = text.encode_prompt([PROMPTS[0]] * len(text.encoders), PromptOptions(clip_skip=clip_skip))
    hidden, *_ = diffusers_pipe(text, tmp_path).encode_prompt(
        PROMPTS[0], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip
    )
    assert torch.allclose(ours.hidden, hidden, atol=1e-5)
    assert text.max_clip_skip == (2 if xl else 3)


def test_each_encoder_reads_its_own_prompt(tmp_path: Path) -> None:
    text = conditioner(xl=True)
    ours = text.encode_prompt(PROMPTS, A1111)
    hidden, _, pooled, _ = diffusers_pipe(text, tmp_path).encode_prompt(
        PROMPTS[0], prompt_2=PROMPTS[1], device="cpu", do_classifier_free_guidance=False
    )
    assert ours.pooled is not None
    assert torch.allclose(ours.hidden, hidden, atol=1e-5) and torch.allclose(ours.pooled, pooled, atol=1e-5)


@pytest.mark.parametrize("xl", [False, True])
def test_a_prompt_without_syntax_is_the_same_plain(xl: bool) -> None:
    text = conditioner(xl)
    rows = [text.encode_prompt([PROMPTS[0]] * len(text.encoders), options) for options in (A1111, PLAIN)]
    for row in rows:
        assert torch.equal(row.hidden, text.encode(PROMPTS[:1]).hidden)
    syntax = text.encode_prompt(["(a)"] * len(text.encoders), PLAIN)
    assert torch.equal(syntax.hidden, text.encode(["(a)"]).hidden)


def by_hand(states: Tensor, weights: list[float]) -> Tensor:
    """One chunk of diffusers' states [77, D] times the weights, at the mean from before, in float64."""
    exact = states.double()
    scaled = exact * torch.tensor(weights, dtype=torch.float64)[:, None]
    return scaled * exact.mean() / scaled.mean()


@pytest.mark.parametrize("xl", [False, True])
def test_long_weighted_prompts_are_chunks_of_diffusers_encoders(xl: bool, tmp_path: Path) -> None:
    text = conditioner(xl)
    pipe = diffusers_pipe(text, tmp_path)
    found = text.encode_prompt([LONG] * len(text.encoders), A1111)
    chunks = [chunk.padded(text.tokenizers[0]) for chunk in split_chunks(parse_emphasis(LONG), text.tokenizers[0])]
    assert len(chunks) >= 3
    rows = []
    for ids, weights in chunks:
        states = []
        for encoder in (pipe.text_encoder, pipe.text_encoder_2) if xl else (pipe.text_encoder,):
            out = encoder(torch.tensor([ids]), output_hidden_states=True)
            states.append(by_hand(out.hidden_states[-2][0] if xl else out.last_hidden_state[0], weights))
        rows.append(torch.cat(states, -1))
    assert torch.allclose(found.hidden[0].double(), torch.cat(rows), atol=1e-5)
    if xl:
        first = pipe.text_encoder_2(torch.tensor([chunks[0][0]])).text_embeds
        assert found.pooled is not None and torch.allclose(found.pooled, first, atol=1e-5)


def test_the_shorter_of_two_prompts_ends_with_empty_chunks() -> None:
    text = conditioner(xl=True)
    found = text.encode_prompt(["a red apple", LONG], A1111).hidden
    alone, empty = (text.encode_prompt([words, words], A1111).hidden for words in ("a red apple", ""))
    assert found.shape[1] == text.encode_prompt([LONG, LONG], A1111).tokens > 16
    assert torch.allclose(found[:, :16, :32], alone[:, :, :32], atol=1e-6)
    assert torch.allclose(found[:, 16:32, :32], empty[:, :, :32], atol=1e-6)


def test_emphasis_keeps_the_mean_of_each_chunk() -> None:
    states, weights = torch.randn(3, 7, 5) + 1, torch.rand(3, 7) + 0.5
    found = emphasize(states, weights)
    assert torch.allclose(found.mean((1, 2)), states.mean((1, 2)), atol=1e-5)
    assert torch.equal(emphasize(states, torch.ones(3, 7)), states)
    assert emphasize(states.bfloat16(), weights).dtype == torch.bfloat16
    centred = states - states.mean((1, 2), keepdim=True)
    assert torch.equal(emphasize(centred, weights), centred * weights[..., None])
