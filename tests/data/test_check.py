"""`latentdiff data check`: everything wrong is found, nothing is changed."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from latentdiff import cli
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check
from latentdiff.training.finetune import plan_finetune


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(f"a {colour} square")
    return tmp_path


def spoil(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "2.txt").unlink()
    Image.new("RGB", (5, 4)).save(folder / "small.png")
    (folder / "small.txt").write_text("small and far too long for it")
    (folder / "twin.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "twin.txt").write_text("again")


def lost_words(caption: str) -> str:
    return caption[20:]


def test_a_good_folder_has_no_findings(folder: Path) -> None:
    report = check(folder, Fitting(8), lost_words)
    assert report.findings == []
    assert (report.pictures, report.captions, report.sizes) == (3, 3, [("16x16", 3)])


def test_everything_wrong_is_found(folder: Path) -> None:
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    report = check(folder, Fitting(8), lost_words)
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


def test_long_shapes_are_errors_and_the_buckets_are_told(folder: Path) -> None:
    for name, size in (("wide", (32, 16)), ("ribbon", (200, 16))):
        Image.effect_noise(size, 50).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    report = check(folder, Fitting(16, 2), lost_words)
    assert [(e.kind, e.name) for e in report.errors] == [("too narrow", "ribbon.png")]
    assert report.buckets == [("16x16", 3), ("32x8", 1), ("22x10", 1)]
    assert not check(folder, Fitting(16, 2, max_crop=1), lost_words).errors


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


def test_a_template_reaches_the_check_and_the_plan(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / name / "x.png")
    long = ["--model", model_folder, "--caption-template", "a " * 100 + "{name}"]
    assert run(monkeypatch, tmp_path, *long) == 0
    assert "long caption" in capsys.readouterr().out
    plan = plan_finetune(str(tmp_path), tmp_path / "run", str(model_folder), caption_template="a photo of a {name}")
    assert plan.config.data.caption_template == "a photo of a {name}" and plan.report.layout == "a folder per class"
    assert run(monkeypatch, tmp_path, "--model", model_folder, "--caption-template", "a cat") == 2
    assert "caption_template='a cat' must hold {name}" in capsys.readouterr().err
