"""How commands end other than successfully."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentdiff import cli
from latentdiff.cli import generate

ROOT = Path(__file__).parents[2]


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_ctrl_c_prints_one_line_and_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: generate.Request) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", interrupt)
    assert run("generate", "x", "-o", "x.png", monkeypatch=monkeypatch) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    "arguments",
    [["generate", "a\udcff"], ["generate", "a", "--model", "c\udcff"], ["finetune", "x", "--trigger", "b\udcff"]],
)
def test_text_that_is_not_utf_8(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "-o", "x.png", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert "udcff' is not UTF-8 text" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "-o", "x.png", "--stepps", "3"], "--steps"),
        (["generate", "x", "-o", "x.png", "--steps", "three"], "'--steps'"),
        (["generate", "x"], "'--output'"),
        (["finetune", "-o", "run"], "'FOLDER'"),
        (["train", "x.yaml", "--num-processes", "0"], "'--num-processes'"),
        (["data", "chek"], "'chek'"),
        (["paint"], "'paint'"),
    ],
)
def test_a_mistyped_command_prints_one_line_and_exits_with_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message.lower() in error.lower() and error.count("\n") == 1
    assert error.endswith(" --help\n")


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_a_missing_command_prints_the_commands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, monkeypatch=monkeypatch) in (0, 2)  # by Click's version
    printed = capsys.readouterr()
    assert "Commands:" in printed.out + printed.err and "error" not in printed.err


def test_system_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: generate.Request) -> None:
        raise PermissionError(13, "Permission denied", "x.png")

    monkeypatch.setattr(generate, "run", refuse)
    assert run("generate", "x", "-o", "x.png", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == (
        "error: [Errno 13] Permission denied: 'x.png'; check the path, its permissions and the free disk space\n"
    )


@pytest.mark.parametrize("home", [True, False])
def test_an_ascii_terminal_and_a_missing_home_folder_are_not_errors(
    home: bool, model_folder: Path, tmp_path: Path
) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    environment["LATENTDIFF_KERNELS"] = "off"
    environment |= {"HOME": str(tmp_path)} if home else {}
    words = ["generate", "猫", "-o", str(tmp_path / "猫.png"), "--model", str(model_folder), "--steps", "1"]
    code = f"import os, pwd, sys; sys.argv = {['latentdiff', *words]!r}\n"
    code += "" if home else "pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError())\n"
    code += "from latentdiff.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()
    assert rb"\u732b.png" in done.stdout and (tmp_path / "猫.png").exists()
