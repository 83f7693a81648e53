"""`latentdiff env`."""

import sys

import pytest
import torch

from latentdiff import cli


def test_env_prints_what_a_bug_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latentdiff", "env"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    for part in (f"torch {torch.__version__}", "kernels: ", "dtype auto: torch.", "cache folders: ", "optimize=auto"):
        assert part in printed
    assert "denoiser: UNet2DConditionModel -> TimeEmbeddingCache: 1 of 1" in printed or "1 not: " in printed
