"""Options of `latentdiff serve` that are refused before anything is loaded."""

import sys
from pathlib import Path

import pytest

from latentdiff.cli import main
from latentdiff.cli.serve import Request, _models

pytest.importorskip("uvicorn")


def test_models_in_single_files_are_opened_without_a_variant(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    words = ["owner/name", f"a={tmp_path / 'a.safetensors'}"]
    request = Request(words, [], [], [], "localhost", 0, None, [], None, None, None, {"variant": "fp16"}, {})
    assert dict(_models(request)) == {("name", "owner/name"): {"variant": "fp16"}, ("a", words[1][2:]): {}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "trained"], "--runs trained is the folder for fine-tuning, which is off; pass --train, or omit it"),
        (["--train", "missing"], "--train missing is not a folder; create it"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reachable from other machines and requires a key"),
        (["--upscaler", "4x=missing.pth"], "--upscaler missing.pth is not a file"),
        (
            ["--model", "a=a.safetensors", "--variant", "fp16"],
            "--variant fp16 is of the files in a folder, and all models",
        ),
        (["--lora", "ink=missing.safetensors"], "missing.safetensors does not exist"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LATENTDIFF_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["latentdiff", "serve", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
