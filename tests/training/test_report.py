"""The content of report.html."""

import base64
import io
import json
import re
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resvg_py
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff import cli
from latentdiff.errors import InputError
from latentdiff.training.chart import Axis, Curve, chart, smooth
from latentdiff.training.report import write_report
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.samples import Samples

VOID = {"meta", "img", "br"}
HOSTILE = '<script>alert("&amp;")</script>'


class Page(HTMLParser):
    """All tags with their attributes, and the text; fails if a tag is closed that was not open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def charts(self) -> list[str]:
        return [str(svg["aria-label"]).removesuffix(" over the step") for svg in self.all("svg")]


def write_metrics(folder: Path, *lines: Any) -> None:
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def line(step: int, loss: float = 1.0, time: float | None = None) -> dict[str, float]:
    return {"step": step, "lr": 1e-3, "time": 1e9 + step if time is None else time, "loss": loss}


def fact(page: Page, name: str) -> str:
    found = re.search(rf"<th>{name}</th><td>(.*?)</td>", page.source)
    assert found, name
    return found[1]


def test_everything_is_on_one_page(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    held_out = [{"step": step, "time": 1e9 + step + 0.5, "held_out_loss": 1 / step} for step in (20, 40)]
    write_metrics(run, line(10), line(20), held_out[0], line(30), line(40), held_out[1])
    (run / "config.yaml").write_text(f"data:\n  batch_size: 8\nsample_prompts: ['{HOSTILE}', 猫]\n", encoding="utf-8")
    findings = [
        {"kind": "no caption", "where": f"{k}{HOSTILE}.png", "name": "the name", "detail": "add one"} for k in range(9)
    ]
    data = {"path": "pictures", "pictures": 12, "sizes": [["64x48", 7], ["16x16", 5]], "findings": findings}
    (run / "data.json").write_text(json.dumps(data | {HOSTILE: "\ud800"}))
    grids = {step: Image.effect_noise((24, 16), 50 + step).convert("RGB") for step in range(10, 260, 10)}
    (run / "samples").mkdir()
    for step, grid in grids.items():
        grid.save(run / "samples" / f"{step:07d}.png")

    assert write_report(RunFolder(run)) == run / "report.html"
    page = Page(run / "report.html")
    assert "http" not in page.source and not page.all("script") and not page.all("link")
    assert HOSTILE in page.text and HOSTILE not in page.source and "猫" in page.text
    assert page.charts() == ["loss", "learning rate", "steps per second"]
    assert (fact(page, "pictures"), fact(page, "sizes")) == ("12", "64x48: 7<br>16x16: 5")
    assert fact(page, "findings").endswith(".png: add one<br>and 1 more") and "the name" not in page.text
    assert (fact(page, "steps"), fact(page, "held-out loss")) == ("40", "0.025, best 0.025 at step 40")
    assert [image["alt"] for image in page.all("img")] == [f"step {step}" for step in (250, 170, 90, 10)]
    for image, step in zip(page.all("img"), (250, 170, 90, 10), strict=True):
        assert np.abs(pixels_of(image) - np.asarray(grids[step], dtype=int)).mean() < 8


def pixels_of(image: dict[str, str | None]) -> np.ndarray:
    data = base64.b64decode(str(image["src"]).removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_samples_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    """Nine prompts fill a second row of the grid; an evaluation of other prompts is not compared."""
    write_metrics(tmp_path, line(10))
    prompts = [HOSTILE, *(f"prompt {k}" for k in range(8))]
    for step in (0, 5, 10):
        pixels = [torch.full((3, 16, 16), (k + step) / 12 - 1) for k in range(9)]
        Samples.of(pixels, prompts if step != 5 else prompts[::-1]).save(tmp_path / "samples" / f"{step:07d}.png")
    Samples.of([torch.ones(3, 16, 16)], ["a caption of the folder"]).save(tmp_path / "data.png")
    page = Page(write_report(RunFolder(tmp_path)))
    images = page.all("img")
    assert [image["alt"] for image in images] == ["step 0", "step 10"] * 9 + ["a caption of the folder"]
    assert re.findall(r'class="prompt">([^<]*)<', page.source) == [escape(name) for name in prompts]
    expected = [127.5 * (k + step) / 12 for k in range(9) for step in (0, 10)] + [255]
    assert [pixels_of(image).mean() for image in images] == pytest.approx(expected, abs=1.5)


def test_a_sample_grid_of_another_program_is_shown_uncropped(tmp_path: Path) -> None:
    write_metrics(tmp_path, line(10))
    chunks = PngInfo()
    chunks.add_text("captions", "{")
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (32, 16)).save(tmp_path / "samples" / "x.png", pnginfo=chunks)
    assert [image["alt"] for image in Page(write_report(RunFolder(tmp_path))).all("img")] == ["x"]


def test_the_page_of_a_run_that_has_just_started(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", {"step": 1})
    page = Page(write_report(RunFolder(tmp_path / "run")))
    assert page.charts() == [] and fact(page, "steps") == "1" and page.text.count("Curves") == 0
    write_metrics(tmp_path / "run", line(5, 0.25))
    page = Page(write_report(RunFolder(tmp_path / "run")))
    assert page.charts() == ["loss", "learning rate"] and fact(page, "training loss") == "0.25, smoothed"


def test_doubled_odd_and_truncated_lines(tmp_path: Path) -> None:
    """The run was interrupted at step 30 and continued from step 15 days later."""
    later = [{"step": 16, "time": 2e9, "held_out_loss": 0.5}, line(20, 3.0, time=2e9 + 10)]
    first = [line(10, 2.0), line(20, 2.0), {"step": 30, "time": 1e9 + 30, "held_out_loss": 0.1}, line(30, 9.0)]
    odd = ["[1]", '{"lo', "", {"step": True, "loss": 7.0}, {"step": 30, "loss": float("nan"), "name": "x"}]
    write_metrics(tmp_path, *first, *later, *odd[:4], '{"step": 40, "lo')
    page = Page(write_report(RunFolder(tmp_path)))
    assert (fact(page, "steps"), fact(page, "training loss")) == ("20", "2.5, smoothed")
    assert fact(page, "held-out loss") == "0.5, best 0.5 at step 16"
    assert float(fact(page, "hours")) == pytest.approx(30 / 3600, abs=0.005)
    write_metrics(tmp_path, *first, *later, odd[4])
    assert fact(Page(write_report(RunFolder(tmp_path))), "steps") == "30"


def test_the_speed_is_that_of_training_only(tmp_path: Path) -> None:
    """10 steps in 2 s, an evaluation of 60 s, 10 steps in 2 s, an interruption of a day, 10 steps in 2 s."""
    times = {10: 0.0, 20: 2.0, 30: 64.0, 40: 86_464.0, 50: 86_466.0}
    lines = [line(step, time=1e9 + time) | {"pictures_per_step": 8} for step, time in times.items()]
    lines.insert(2, {"step": 20, "time": 1e9 + 62, "pictures_per_step": 8, "psnr": 20.0})
    write_metrics(tmp_path, *lines)
    page = Page(write_report(RunFolder(tmp_path)))
    assert page.charts() == ["loss", "learning rate", "pictures per second", "psnr"]
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", page.source.split("<svg")[3])
    assert "40" in ticks and max(float(tick) for tick in ticks if tick[0].isdigit()) <= 60
    assert fact(page, "hours") == f"{66 / 3600:.2f}"


@pytest.mark.parametrize("config", ["a: [", "text", "data: 3", "data: {batch_size: x}", "run: {}"])
@pytest.mark.parametrize("data", ["{", "[]", "null", "{}"])
def test_files_with_other_content_are_not_errors(config: str, data: str, tmp_path: Path) -> None:
    write_metrics(tmp_path, line(10), line(20))
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "data.json").write_text(data)
    page = Page(write_report(RunFolder(tmp_path)))
    assert page.charts()[-1] == "steps per second" and "Data" not in page.text and config in page.text


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read .*; pass the folder of a run"):
        write_report(RunFolder(tmp_path / "gone"))
    write_metrics(tmp_path, "")
    with pytest.raises(InputError, match="contains no values yet"):
        write_report(RunFolder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_metrics(tmp_path / "run", line(10))
    monkeypatch.setattr(sys, "argv", ["latentdiff", "report", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"


def test_smoothing_keeps_a_straight_line_and_reduces_noise() -> None:
    flat = [(float(k), 3.0) for k in range(50)]
    assert smooth(flat) == flat
    points = [(float(k), (-1.0) ** k) for k in range(1000)]
    assert max(abs(y) for _, y in smooth(points)[25:-25]) < 0.05
    assert smooth([(1.0, 2.0)]) == [(1.0, 2.0)]


@pytest.mark.parametrize(("low", "high", "log"), [(0, 1, False), (-3, 2e6, False), (1e-7, 3e-7, False), (1e-4, 3, True),
                                                  (0.2, 2.5, True), (0.25, 0.26, True)])  # fmt: skip
def test_ticks_are_few_and_within_the_axis(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 7 and ticks == sorted(set(ticks)) and low <= ticks[0] and ticks[-1] <= high
    axis = Axis(low, high, 200, 10, log)
    assert (axis.place(low), axis.place(high)) == pytest.approx((200, 10))


def test_curves_are_drawn_where_they_should_be() -> None:
    """A flat and a rising curve; 2,000 points of the one are thinned."""
    rising = Curve("rising", [(float(k), float(k)) for k in range(2000)], "#ff0000")
    svg = chart("two", [rising, Curve("flat", [(0.0, 500.0), (1999.0, 500.0)], "#0000ff")])
    assert max(len(path.split("L")) for path in re.findall(r' d="([^"]*)"', svg)) == 1000
    drawn = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=drawn, background="#ffffff"))))
    pixels = np.asarray(image.convert("RGB")).astype(int)
    reds = np.argwhere((pixels[40:, :, 0] > 200) & (pixels[40:, :, 1:].max(-1) < 100))
    blues = np.argwhere((pixels[40:, :, 2] > 200) & (pixels[40:, :, :2].max(-1) < 100))
    assert np.corrcoef(reds.T)[0, 1] < -0.99 and np.ptp(blues[:, 0]) <= 5
