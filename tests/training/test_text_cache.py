"""The text cache gives the encoder's results, and is encoded again if anything changed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from latentdiff.checkpoints.components import read_pipeline
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.training import text_cache
from latentdiff.training.text_cache import TextCache

CAPTIONS = ["", "a cat face", "a red apple"]


@pytest.fixture(params=["model_folder", "xl_folder"])
def text(request: pytest.FixtureRequest) -> TextConditioner:
    return read_pipeline(request.getfixturevalue(request.param), torch.float32).text


def test_cached_embeddings_equal_the_encoders(text: TextConditioner, tmp_path: Path) -> None:
    cache = TextCache(text, CAPTIONS, tmp_path / "text.safetensors", torch.device("cpu"))
    for captions in (["a red apple", ""], ["a rocket", ""]):  # of the second not all is in the table
        found, wanted = cache.embed(captions), text.embed(captions)
        assert torch.allclose(found.hidden, wanted.hidden, atol=1e-6)
        assert (found.pooled is None) == (wanted.pooled is None)
        assert wanted.pooled is None or torch.allclose(found.pooled, wanted.pooled, atol=1e-6)


def test_only_what_changed_is_encoded_again(
    text: TextConditioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text.safetensors"
    made: list[list[str]] = []
    make = text_cache._make

    def counted(conditioner: TextConditioner, captions: list[str], *rest: Any) -> Any:
        made.append(captions)
        return make(conditioner, captions, *rest)

    monkeypatch.setattr(text_cache, "_make", counted)

    def encodes(captions: list[str] = CAPTIONS) -> bool:
        made.clear()
        TextCache(text, captions, file, torch.device("cpu"))
        return bool(made)

    assert encodes() and not encodes()
    assert encodes(CAPTIONS[:2]) and encodes() and not encodes()
    next(text.parameters()).data += 1
    assert encodes() and not encodes()
    file.write_bytes(file.read_bytes()[:-20])
    assert encodes() and not encodes()
    text.double()
    assert encodes()
