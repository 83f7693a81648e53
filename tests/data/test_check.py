"""`latentdiff data check`: findings, limits of memory and output, and the command."""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from latentdiff import cli
from latentdiff.data import check as module
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check
from latentdiff.data.parallel import MemoryBudget, threaded_map
from latentdiff.errors import InputError
from latentdiff.training.finetune import plan_finetune
from latentdiff.training.run_folder import RunFolder


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
    checked = check(folder, Fitting(8), lost_words)
    assert checked.findings == []
    assert (checked.pictures, checked.captions, checked.sizes) == (3, 3, [("16x16", 3)])


def test_every_kind_of_finding_is_reported_and_nothing_is_changed(folder: Path) -> None:
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    checked = check(folder, Fitting(8), lost_words)
    found = {(finding.kind, Path(finding.where).name) for finding in checked.findings}
    assert found == {
        ("unreadable", "1.png"),
        ("no caption", "2.png"),
        ("too small", "small.png"),
        ("long caption", "small.png"),
        ("duplicate", "twin.png"),
    }
    assert len(checked.errors) == 3
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_narrow_pictures_are_errors_and_buckets_are_counted(folder: Path) -> None:
    for name, size in (("wide", (32, 16)), ("ribbon", (200, 16))):
        Image.effect_noise(size, 50).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    checked = check(folder, Fitting(16, 2), lost_words)
    assert [(e.kind, e.name) for e in checked.errors] == [("too narrow", "ribbon.png")]
    assert checked.buckets == [("16x16", 3), ("32x8", 1), ("22x12", 1)]
    assert not check(folder, Fitting(16, 2, max_crop=1), lost_words).errors


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", "data", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command_prints_text_or_json_and_its_exit_code_reports_errors(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, folder, "--model", model_folder) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    spoil(folder)
    assert run(monkeypatch, folder, "--model", model_folder, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == 3 and found["layout"] == "sidecar files"
    assert run(monkeypatch, folder / "gone", "--model", model_folder) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_caption_template_applies_to_the_check_and_the_plan(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / name / "x.png")
    long = ["--model", model_folder, "--caption-template", "a " * 100 + "{name}"]
    assert run(monkeypatch, tmp_path, *long) == 0
    assert "long caption" in capsys.readouterr().out
    plan = plan_finetune(
        str(tmp_path), RunFolder(tmp_path / "run"), str(model_folder), caption_template="a photo of a {name}"
    )
    assert plan.config.data.caption_template == "a photo of a {name}" and plan.checked.layout == "a folder per class"
    assert run(monkeypatch, tmp_path, "--model", model_folder, "--caption-template", "a cat") == 2
    assert "caption_template='a cat' must contain {name}" in capsys.readouterr().err


def test_a_caption_template_without_an_effect_is_an_error(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"caption_template='a \{name\}' has no effect: .* come from sidecar files; omit"
    ):
        check(folder, Fitting(8), lost_words, "a {name}")


def test_captions_are_measured_with_the_trigger(folder: Path) -> None:
    assert not check(folder, Fitting(8), lost_words).findings
    checked = check(folder, Fitting(8), lost_words, prefix="a trigger, long")
    lost = [finding.detail.removeprefix("exceeds the token limit; lost: ") for finding in checked.findings]
    assert sorted(lost) == ["'ed square'", "'lue square'", "'reen square'"]
    (folder / "0.txt").unlink()
    assert not check(folder, Fitting(8), lost_words, prefix="sks").errors


def test_a_report_of_long_captions_fits_on_a_screen(tmp_path: Path) -> None:
    for k in range(150):
        Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(f"{k} " + "word " * 4000)
        (tmp_path / f"{k}.npz").write_bytes(b"x")
    checked = check(tmp_path, Fitting(8), lambda caption: caption[:20000])
    words = checked.summary()
    assert len(words.splitlines()) < 25 and max(map(len, words.splitlines())) < 200 + len(str(tmp_path))
    assert "long caption: and 145 more; --json lists all" in words and "ignored file: and 145 more" in words
    assert words.endswith("0 errors, 300 warnings")
    assert checked.warnings == "long caption (150), ignored file (150)"
    assert max(len(finding["detail"]) for finding in checked.to_json()["findings"]) > 15000


def test_files_that_are_not_read_are_warnings_also_in_the_plan(folder: Path, model_folder: Path) -> None:
    (folder / "lost.txt").write_text("x")
    (finding,) = check(folder, Fitting(8), lost_words).findings
    assert (finding.kind, Path(finding.where)) == ("ignored file", folder / "lost.txt")
    plan = plan_finetune(folder, RunFolder(folder / "run"), str(model_folder)).summary()
    command = f"latentdiff data check {folder} --model {model_folder} --resolution 16"
    assert f"warnings: ignored file (1); {command} lists them" in plan


def test_small_buckets_are_a_warning(folder: Path) -> None:
    for k in range(10):
        Image.effect_noise((48, 16), 50 + k).convert("RGB").save(folder / f"wide {k}.png")
        (folder / f"wide {k}.txt").write_text("wide")
    checked = check(folder, Fitting(16, 2), lost_words)
    assert checked.buckets == [("24x8", 10), ("16x16", 3)]
    assert [f.detail for f in checked.findings] == [
        "1 of 2 have fewer than 8 pictures; larger batches will crop more"
    ]  # fmt: skip


def test_enlargements_are_counted_and_stated_in_the_plan(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, side in enumerate((15, 16, 20)):
        Image.effect_noise((side, side), 50).convert("RGB").save(tmp_path / f"a dog {k}.png")
    options = ["--model", model_folder, "--resolution", 16]
    assert run(monkeypatch, tmp_path, *options) == 1
    assert "too small" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, *options, "--allow-upscale", 1.1) == 0
    assert "enlarged pictures: 1, by up to 1.07" in capsys.readouterr().out
    plan = plan_finetune(tmp_path, RunFolder(tmp_path / "run"), str(model_folder), resolution=16, allow_upscale=1.1)
    assert "1 enlarged by up to 1.07" in plan.summary() and plan.config.data.allow_upscale == 1.1
    small = plan_finetune(tmp_path, RunFolder(tmp_path / "run"), str(model_folder), resolution=8)
    assert small.config.data.resolution == 8 and "8 px" in small.summary()
    command = f"latentdiff data check {tmp_path} --model {model_folder} --resolution 20"
    with pytest.raises(InputError, match=f"see {re.escape(command)}, repair them"):
        plan_finetune(tmp_path, RunFolder(tmp_path / "run"), str(model_folder), resolution=20)
    for resolution, message in ((17, "must be a multiple of 2; try 16 or 18"), (0, "resolution=0")):
        with pytest.raises(InputError, match=message):
            plan_finetune(tmp_path, RunFolder(tmp_path / "run"), str(model_folder), resolution=resolution)


def test_memory_is_bounded_while_pictures_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(12):
        Image.effect_noise((64, 64), 50 + k).convert("RGB").save(tmp_path / f"a dog {k}.png")
    lock, state = threading.Lock(), {"now": 0, "most": 0}
    decode = module.decode

    def counted(data: bytes, name: str) -> Image.Image:
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.005)
        try:
            return decode(data, name)
        finally:
            with lock:
                state["now"] -= 1

    monkeypatch.setattr(module, "decode", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for limit, most in ((64 * 64 * 8 * 3, 3), (10, 1)):  # a picture larger than the budget is decoded alone
        monkeypatch.setattr(module, "PIXELS", MemoryBudget(limit))
        state["most"] = 0
        assert check(tmp_path, Fitting(64), lost_words).pictures == 12
        assert state["most"] == most


def test_results_keep_their_order_and_few_items_are_submitted_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for k in range(10_000):
            taken.append(k)
            yield k

    results = threaded_map(lambda k: k * k, items())
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 5 + 4 * (os.cpu_count() or 1)
    results.close()  # type: ignore[attr-defined]
