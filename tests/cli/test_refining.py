"""`generate` with a refiner and SDXL's sizes, and recipes of such images."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff import cli
from latentdiff.recipe import Recipe, read_recipe, write_image
from tests.small import write_small_refiner


@pytest.fixture(scope="module")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_refiner(tmp_path_factory.mktemp("models") / "small-refiner")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", "generate", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int) or stopped.value.code is None
    return stopped.value.code or 0


def test_a_recipe_with_a_refiner_reproduces_the_pixels(
    xl_folder: Path,
    refiner_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second, third = (tmp_path / f"{name}.png" for name in "abc")
    sizes = ["--original-size", 40, 24, "--crops-coords-top-left", 0, 4, "--negative-aesthetic-score", 1.5]
    models = ["--model", xl_folder, "--refiner", refiner_folder, "--refiner-switch", 0.6]
    sampling = ["--steps", 4, "--seed", 3, "--sampler", "euler_ancestral"]
    assert run(monkeypatch, "a red apple", "-o", first, *models, *sizes, *sampling) == 0
    recipe = read_recipe(first)
    assert recipe.original_size == (40, 24) and recipe.crops_coords_top_left == (0, 4)
    assert (recipe.refiner, recipe.refiner_switch) == (str(refiner_folder), 0.6)
    assert recipe.negative_aesthetic_score == 1.5 and recipe.aesthetic_score is None
    assert "Refiner: small-refiner, Refiner switch at: 0.6" in Image.open(first).info["parameters"]
    assert run(monkeypatch, "--recipe", first, "-o", second) == 0
    assert run(monkeypatch, "--recipe", first, "-o", third, "--original-size", 8, 8) == 0
    pixels = [np.asarray(Image.open(path)).astype(int) for path in (first, second, third)]
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])

    other = write_small_refiner(tmp_path / "other", scaling_factor=0.2)
    image, changed = Image.open(first), recipe.model_copy(update={"refiner": str(other)})
    write_image(image, changed, tmp_path / "changed.png")
    capsys.readouterr()
    assert run(monkeypatch, "--recipe", tmp_path / "changed.png", "-o", tmp_path / "d.png") == 2
    assert f"the recipe's refiner is {recipe.refiner_hash}, {other} is" in capsys.readouterr().err


def test_a_file_of_prompts_is_refined_too(
    xl_folder: Path, refiner_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\na cat face\n")
    words = ["--prompts", tmp_path / "prompts.txt", "--model", xl_folder, "--refiner", refiner_folder, "--steps", 4]
    words += ["--aesthetic-score", 7, "--original-size", 40, 24, "--optimize", "off"]
    assert run(monkeypatch, *words, "-o", tmp_path / "many") == 0
    assert run(monkeypatch, "--recipe", tmp_path / "many" / "2.png", "-o", tmp_path / "one.png") == 0
    many, one = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("many/2.png", "one.png"))
    assert read_recipe(tmp_path / "many" / "2.png").aesthetic_score == 7 and np.abs(many - one).max() <= 1


@pytest.mark.parametrize("name", ["refiner", "vae", "unet"])
def test_a_recipe_starts_no_download(
    name: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"prompt": "x", "seed": 1, "sampler": "ddim", "eta": 0, "steps": 1, "guidance_scale": 1, "height": 16}
    made |= {"width": 16, "dtype": "float32", "model": str(model_folder), "model_hash": "0", "version": "1"}
    write_image(Image.new("RGB", (16, 16)), Recipe.model_validate(made | {name: "owner/name"}), tmp_path / "x.png")
    monkeypatch.setattr("latentdiff.checkpoints.locate_model.download", lambda *_: pytest.fail("the hub was searched"))
    assert run(monkeypatch, "--recipe", tmp_path / "x.png", "-o", tmp_path / "y.png") == 2
    assert (
        f"was made with owner/name, which does not exist here; pass its path with --{name}" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refiner-switch", 0.5], "--refiner-switch requires a refiner; pass it with --refiner"),
        (["--refiner", "x", "--hires", 2], "--refiner cannot be combined with --hires"),
        (["--refiner", "missing.safetensors"], "missing.safetensors does not exist"),
        (["--aesthetic-score", 7], "aesthetic_score= (--aesthetic-score) is only for SDXL's refiner"),
        (["--original-size", 0, 8], "original_size=0 must be"),
    ],
)
def test_errors_are_one_line(
    words: list[object],
    message: str,
    xl_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "x", "-o", tmp_path / "x.png", "--steps", 2, "--model", xl_folder, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
