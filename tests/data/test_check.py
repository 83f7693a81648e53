"""`latentdiff data check`: everything wrong is found, nothing is changed."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from latentdiff import cli
from latentdiff.data.check import check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(f"a {colour} square")
    return tmp_path


def spoil(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "2.txt").unlink()
    Image.new("RGB", (9, 4)).save(folder / "small.png")
    (folder / "small.txt").write_text("small and far too long for it")
    (folder / "twin.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "twin.txt").write_text("again")


def lost_words(caption: str) -> str:
    return caption[20:]


def test_a_good_folder_has_no_findings(folder: Path) -> None:
    report = check(folder, 8, lost_words)
    assert report.findings == []
    assert (report.pictures, report.captions, report.sizes) == (3, 3, [("16x16", 3)])


def test_everything_wrong_is_found(folder: Path) -> None:
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    report = check(folder, 8, lost_words)
    found = {(finding.kind, Path(finding.where).name) for finding in report.findings}
    assert found == {
        ("unreadable", "1.png"),
        ("no caption", "2.png"),
        ("too small", "small.png"),
        ("long caption", "small.png"),
        ("duplicate", "twin.png"),
    }
    assert len(report.errors) == 3
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", "data", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command_says_it_in_words_and_in_json(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, folder, "--model", model_folder) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    spoil(folder)
    assert run(monkeypatch, folder, "--model", model_folder, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == 3 and report["layout"] == "sidecar files"
    assert run(monkeypatch, folder / "gone", "--model", model_folder) == 2
    assert capsys.readouterr().err.startswith("error: ")
