"""Previews of `latentdiff generate`, `latentdiff grid` and contact sheets."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.cli import main
from latentdiff.files import partial_path
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.recipe import read_recipe


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["latentdiff", *map(str, arguments)])
        main()
    return int(ended.value.code or 0)


def test_a_preview_file_is_rewritten(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    replace = Path.replace

    def watched(path: Path, target: Path) -> Path:
        if Path(target).name == "look.png":
            with Image.open(path) as image:
                seen.append(image.size)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    monkeypatch.chdir(tmp_path)
    options = ["--model", model_folder, "--steps", 7, "--preview", "look.png", "--preview-every", 3]
    assert run("generate", "a cat", "a dog", "-o", "x.png", *options) == 0
    assert seen == [(32, 16)] * 3  # after steps 3, 6 and 7, in the size of the images
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.png", "x-1.png", "x-2.png"]
    assert partial_path(Path("look.png")).suffix == ".png"


def test_a_grid_is_labelled_and_continues(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["grid", "a (cat:1.4)", "--x", "steps=1,2,3", "--y", "sampler=ddim,dpmpp_2m", "--model", model_folder]
    assert run(*words, "-o", "sheet.png") == 0
    first = np.asarray(Image.open("sheet.png"))
    cells = sorted(Path("sheet-cells").iterdir())
    recipes = [read_recipe(path) for path in cells]
    assert {(recipe.steps, recipe.sampler) for recipe in recipes} == {
        (steps, sampler) for steps in (1, 2, 3) for sampler in ("ddim", "dpmpp_2m")
    }
    assert {recipe.seed for recipe in recipes} == {0}
    cells[0].unlink()
    calls = []
    call = LatentDiffusionPipeline.__call__
    monkeypatch.setattr(LatentDiffusionPipeline, "__call__", lambda *a, **k: calls.append(k) or call(*a, **k))
    assert run(*words, "-o", "sheet.png") == 0
    assert len(calls) == 1 and np.array_equal(np.asarray(Image.open("sheet.png")), first)
    assert run("generate", "--recipe", cells[1], "-o", "again.png") == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(Image.open(cells[1])))


def test_every_cell_is_checked_before_the_first_is_generated(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["grid", "a cat", "--x", "height=16,17", "--y", "sampler=ddim,dmpp_2m", "--model", model_folder]
    assert run(*words, "-o", "sheet.png") == 2
    assert "the cell height=17, sampler=ddim: height=17 must be a multiple of 2" in capsys.readouterr().err
    words[3] = "height=16"
    assert run(*words, "-o", "sheet.png") == 2
    assert "the cell height=16, sampler=dmpp_2m: sampler='dmpp_2m' is unknown" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for k, size in enumerate([(30, 10), (10, 30), (200, 200)]):
        image = Image.new("RGB", size, (255, 0, 0))
        frames = {"save_all": True, "append_images": [Image.new("RGB", size)]} if k == 1 else {}
        image.save(f"images/a name that is long {k}.png", **frames)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    assert run("grid", "--folder", "images", "--columns", 2, "--side", 64, "-o", "sheet.png") == 0
    sheet = np.asarray(Image.open("sheet.png"))
    red = (sheet == [255, 0, 0]).all(-1).sum()
    assert sheet.shape[1] == 8 + 2 * 72 and red == 30 * 10 + 10 * 30 + 64 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--x", "step=1,2"], "did you mean 'steps'"),
        (["x", "--x", "seed=abc"], "the values of seed are whole numbers; write for example seed=1,2,3"),
        (["x", "--x", "steps=1,2.5"], "'2.5': the values of steps are whole numbers; write for example steps=1,2,3"),
        (["x", "--x", "eta=1,x"], "'x': the values of eta are numbers"),
        (["x", "--x", "steps=1", "--columns", "3"], "--columns is for contact sheets; pass --folder"),
        (["--folder", ".", "--steps", "3"], "--folder . makes a contact sheet; omit --steps"),
        (["x", "--x", "steps"], "write a setting and its values"),
        (["x", "--x", "steps=1", "--y", "steps=2"], "are both steps"),
        (["x", "--folder", "."], "--folder . makes a contact sheet; omit the prompt"),
        (["x"], "a grid requires a prompt and --x"),
        (["x", "--x", "seed=" + ",".join(map(str, range(500)))], "has 500 cells"),
        (["x", "--x", "steps=1"], "x-cells is not a folder"),
        (["--folder", "gone"], "is not a folder"),
        (["--folder", "."], "contains no images"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    if "x-cells" in message:
        Path("x-cells").touch()
    before = list(tmp_path.iterdir())
    assert run("grid", *arguments, "-o", "x.png") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == before
