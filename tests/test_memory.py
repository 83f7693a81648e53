"""The most memory that was held: of the device that is asked, in bytes everywhere."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from latentdiff.runtime.memory import peak_memory


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3 * 1024), ("darwin", 3)])
def test_systems_count_in_their_own_units(platform: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3))
    assert peak_memory(torch.device("cpu")) == expected


def test_a_gpu_is_asked_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {torch.device("cuda:0"): 1, torch.device("cuda:1"): 2}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: held[device])
    assert peak_memory(torch.device("cuda:1")) == 2
