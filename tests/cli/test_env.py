"""`latentdiff env`."""

import sys
from pathlib import Path

import pytest
import torch
import typer

from latentdiff import cli
from latentdiff.cli.app import app
from latentdiff.cli.options import NAMES


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


def test_env_opens_a_model_as_generate_does(
    model_folder: Path, xl_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["env", "--model", model_folder, "--optimize", "off", "--dtype", "float16", "--unet", xl_folder]
    monkeypatch.setattr(sys, "argv", ["latentdiff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and "does not match the text encoder" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", sys.argv[:-2])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and "optimize=off, device=cpu, dtype=torch.float16" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "grid", "finetune", "evaluate", "convert", "serve", "env"])
def test_commands_that_open_a_model_share_the_options(command: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert set(NAMES) <= {parameter.name for parameter in parameters}
