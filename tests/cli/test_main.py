"""What ends a command besides success."""

import sys

import pytest

from latentdiff import cli
from latentdiff.cli import generate


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: generate.Request) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", interrupt)
    assert run("generate", "x", "-o", "x.png", monkeypatch=monkeypatch) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("arguments", [["a\udcff"], ["a", "--negative-prompt", "b\udcff"], ["a", "--model", "c\udcff"]])
def test_text_that_is_not_utf_8(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", *arguments, "-o", "x.png", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert "udcff' is not UTF-8 text" in error and error.count("\n") == 1


def test_an_unknown_option_is_exit_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "x", "-o", "x.png", "--stepps", "3", monkeypatch=monkeypatch) == 2
    assert "--steps" in capsys.readouterr().err
