"""Chunks against the table of another implementation, with CLIP's own vocabulary."""

from functools import cache
from itertools import groupby
from typing import Any

import pytest

from latentdiff.checkpoints.clip_vocabulary import clip_tokenizer
from latentdiff.text.chunks import Chunk, split_chunks
from latentdiff.text.prompt_syntax import WeightedText, parse_emphasis
from latentdiff.text.tokenizer import CLIPTokenizer
from tests.text.reference import rows_with


@cache
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer(77)


def written(chunk: Chunk) -> list[Any]:
    return [chunk.ids, [[round(weight, 12), len(list(run))] for weight, run in groupby(chunk.weights)]]


def test_tokens_and_weights_of_all_chunks_equal_the_table() -> None:
    for prompt, chunks in rows_with("chunks"):
        expected = [[ids, [[round(weight, 12), count] for weight, count in runs]] for ids, runs in chunks]
        assert [written(chunk) for chunk in split_chunks(parse_emphasis(prompt), tokenizer())] == expected, prompt


@pytest.mark.parametrize("prompt", ["", " ", "BREAK", "()"])
def test_there_is_always_a_chunk(prompt: str) -> None:
    assert split_chunks(parse_emphasis(prompt), tokenizer())[0].ids == []


def test_padding_follows_the_end_token() -> None:
    ids, weights = Chunk([1, 2], [1.5, 0.5]).padded(clip_tokenizer(7, pad_token="!"))
    assert ids == [49406, 1, 2, 49407, 0, 0, 0]
    assert weights == [1, 1.5, 0.5, 1, 1, 1, 1]


def test_vectors_of_a_learned_word_stay_together() -> None:
    ours = clip_tokenizer(9)
    ours.add_word("<toy>", 3)
    chunks = split_chunks([[WeightedText("a a a a a <toy> <toy> <toy>", 1.2)]], ours)
    assert [len(chunk.ids) for chunk in chunks] == [5, 6, 3]
    assert all(len(chunk.weights) == len(chunk.ids) for chunk in chunks)
