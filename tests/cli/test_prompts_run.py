"""`generate --prompts`: the images it generates, continuation, and independence of processes and batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentdiff.cli import main
from latentdiff.cli.image_generator import ImageGenerator
from latentdiff.cli.launch import started_processes
from latentdiff.errors import InputError
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.recipe import read_recipe

ROOT = Path(__file__).parents[2]
LINES = """a red apple
# the next two differ from the first in steps and size
a cat face --steps 3 --seed 7 --negative_prompt wrong --n_iter 2
a rocket, fluent 3d style --width 32
猫
a red apple --negative_prompt 猫
"""
NAMES = ["1.png", "3-1.png", "3-2.png", "4.png", "5.png", "6.png"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a file of prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(LINES, encoding="utf-8")
    return tmp_path


def words(model: Path, *arguments: object) -> list[str]:
    fixed = ["latentdiff", "generate", "--model", model, "--steps", 2, "--eta", 0.5, "--dtype", "float32", *arguments]
    return [str(word) for word in fixed]


def run(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", arguments)
        main()
    return int(ended.value.code or 0)


def generate(model: Path, *arguments: object) -> int:
    return run(words(model, *arguments))


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in sorted(folder.iterdir())}


def test_each_line_has_its_options_and_its_recipe(folder: Path, model_folder: Path) -> None:
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out") == 0
    recipes = {path.name: read_recipe(path) for path in (folder / "out").iterdir()}
    assert sorted(recipes) == NAMES
    assert [recipes[name].seed for name in NAMES] == [0, 7, 8, 3, 4, 5]
    assert [recipes[name].steps for name in NAMES] == [2, 3, 3, 2, 2, 2]
    assert [recipes[name].negative_prompt for name in NAMES] == [None, "wrong", "wrong", None, None, "猫"]
    assert recipes["4.png"].width == 32 and Image.open("out/4.png").size == (32, 16)
    assert recipes["5.png"].prompt == "猫"
    for name in ("3-2.png", "6.png"):
        assert run(["latentdiff", "generate", "--recipe", f"out/{name}", "-o", "again.png"]) == 0
        again, first = (np.asarray(Image.open(path), int) for path in ("again.png", f"out/{name}"))
        assert np.abs(again - first).max() <= 1


def test_lines_of_variations_share_a_seed(folder: Path, model_folder: Path) -> None:
    lines = "a\nb --subseed_strength 0.2 --n_iter 2\nc --variation_strength 0 --subseed 9 --seed 4\n"
    Path("prompts.txt").write_text(lines, encoding="utf-8")
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out", "--seed", 5) == 0
    recipes = [read_recipe(Path("out", name)) for name in ("1.png", "2-1.png", "2-2.png", "3.png")]
    assert [(r.seed, r.variation_seed, r.variation_strength) for r in recipes] == [
        (5, None, None), (5, 1, 0.2), (5, 2, 0.2), (4, 9, 0.0),
    ]  # fmt: skip
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out", "--seed", 5) == 0


def test_an_interrupted_command_continues_with_the_same_images(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If two files are missing it generates their batches; if all files exist it generates nothing."""
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "whole", "--num-images", 3) == 0
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "parts", "--num-images", 3) == 0
    removed = [Path("parts/1-2.png"), Path("parts/6-3.png")]
    for path in removed:
        path.unlink()
    capsys.readouterr()
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "parts", "--num-images", 3) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == list(map(str, removed)) and "12 of 14 images exist and are kept" in printed.err
    assert pixels(folder / "parts") == pixels(folder / "whole")
    monkeypatch.setattr(LatentDiffusionPipeline, "__call__", None)
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "parts", "--num-images", 3) == 0


def test_nothing_is_overwritten(folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out") == 0
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    (folder / "out" / "1.png").unlink()
    capsys.readouterr()
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out", "--guidance-scale", 2) == 2
    assert "out/3-1.png exists and was made with guidance_scale=5.0, not 2.0; remove it" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(folder / "out" / "4.png")
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out") == 2
    assert "4.png contains no recipe" in capsys.readouterr().err
    unchanged = {path: path.read_bytes() for path in before if path.exists() and path.name != "4.png"}
    assert unchanged.items() <= before.items() and not (folder / "out" / "1.png").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --step 9", "prompts.txt, line 7: 'step' is not an option of a line; did you mean 'steps'?"),
        ("a cat --height 21", "prompts.txt, line 7: height=21 must be a multiple of 2"),
        ("a --subseed 3", "prompts.txt, line 7: variation_seed=3 requires variation_strength"),
        ("a <lora:x>", "prompts.txt, line 7: the prompt names <lora:x>, which is not loaded"),
        ("a <lora:x:y>", "prompts.txt, line 7: <lora:x:y> has the weight 'y'"),
        ("a --prompt_2 b", "prompts.txt, line 7: prompt_2 is for models with two text encoders"),
        ("a --steps 2000", "prompts.txt, line 7: num_inference_steps=2000"),
    ],
)
def test_a_bad_line_stops_the_command_before_anything_is_generated(
    line: str, message: str, folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "prompts.txt").write_text(
        f"{LINES}{line.replace('20', '21')}\n".replace("2100", "2000"), encoding="utf-8"
    )
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out") == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert not captured.out and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--prompts", "prompts.txt", "-o", "out"], "the prompt 'a cat' cannot be combined with --prompts"),
        (["a cat", "-o", "a.png", "--num-processes", "2"], "--num-processes 2 requires --prompts FILE"),
        (["--prompts", "prompts.txt", "-o", "prompts.txt"], "-o prompts.txt is a file; pass a folder"),
        (["--prompts", "prompts.txt", "-o", "no/out"], "the folder no does not exist"),
        (["--prompts", "none.txt", "-o", "out"], "--prompts none.txt cannot be read"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_folder, *arguments) == 2
    assert message in capsys.readouterr().err


def test_images_of_one_shape_share_a_batch(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[list[str]] = []
    generate_batch = ImageGenerator.generate

    def recorded(self: ImageGenerator, batch: Any, callback: Any) -> Any:
        drawn.append([picture.path.name for picture in batch])
        return generate_batch(self, batch, callback)

    monkeypatch.setattr(ImageGenerator, "generate", recorded)
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "a.webp", "--batch-size", 2) == 0
    assert drawn == [["a-1.webp", "a-5.webp"], ["a-3-1.webp", "a-3-2.webp"], ["a-4.webp"], ["a-6.webp"]]
    assert capsys.readouterr().out.split() == [name for batch in drawn for name in batch]


@pytest.mark.slow
def test_two_processes_generate_the_same_images_as_one(folder: Path, model_folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, processes in (("one", 1), ("two", 2)):
        command = words(model_folder, "--prompts", "prompts.txt", "-o", name, "--num-processes", processes)
        done = subprocess.run(
            [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=True
        )
        assert sorted(done.stdout.split()) == [f"{name}/{image}" for image in NAMES]
    assert pixels(folder / "one") == pixels(folder / "two")


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latentdiff", "generate", "--stepz", "3"])
    with pytest.raises(InputError, match=r"process 2 of 2 failed \(No such option: --stepz.*; run this again"):
        with started_processes(2):
            pass


def test_expanded_prompts_are_generated_and_recorded(folder: Path, model_folder: Path) -> None:
    """Random choices follow from the seed of each image; combinations are images of their line."""
    (folder / "words").mkdir()
    Path("words/animal.txt").write_text("cat\ndog\n")
    Path("prompts.txt").write_text("{a red|a blue} __animal__\na cat --negative_prompt '{x|y}'\n")
    words = ["--prompts", "prompts.txt", "--wildcards", "words"]
    assert generate(model_folder, *words, "-o", "all", "--expand", "combinatorial") == 0
    found = {path.name: read_recipe(path) for path in sorted(Path("all").iterdir())}
    texts = ["a red cat", "a red dog", "a blue cat", "a blue dog", "a cat"]
    assert list(found) == ["1-1.png", "1-2.png", "1-3.png", "1-4.png", "2.png"]
    assert [recipe.prompt for recipe in found.values()] == texts
    assert [recipe.seed for recipe in found.values()] == list(range(5))
    for _ in range(2):  # the second time all exist
        assert generate(model_folder, *words, "-o", "some", "--num-images", 3) == 0
    assert len({read_recipe(path).prompt for path in Path("some").glob("1-*.png")}) > 1
    words = ["{a|b|c} cat", "--expand", "random", "--seed", "3"]
    assert generate(model_folder, *words, "-o", "x.png", "--num-images", 2) == 0
    first = read_recipe(Path("x-1.png")).prompt
    assert first in ("a cat", "b cat", "c cat")
    assert generate(model_folder, *words, "-o", "y.png") == 0
    assert read_recipe(Path("y.png")).prompt == first


def test_variants_are_text_with_a_warning_unless_expanded(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_folder, "a {red|green} cat", "-o", "x.png") == 0
    assert "warning: '{red|green}' in the prompt is not replaced; use --expand random" in capsys.readouterr().err
    assert read_recipe(Path("x.png")).prompt == "a {red|green} cat"
    assert generate(model_folder, "a {red|green} cat", "-o", "x.png", "--expand", "combinational") == 2
    assert "did you mean 'combinatorial'?" in capsys.readouterr().err
    Path("prompts.txt").write_text("a\n{b|c\n")
    assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out", "--expand", "random") == 2
    assert "prompts.txt, line 2: '{b|c' cannot be expanded" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "dynamicprompts.enums", None)
    monkeypatch.delitem(sys.modules, "latentdiff.text.wildcards")
    assert generate(model_folder, "a {red|green} cat", "-o", "x.png", "--expand", "random") == 2
    error = capsys.readouterr().err
    assert 'pip install "latentdiff[wildcards]"' in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [["--image", "in.png", "--strength", "0.6"], ["--hires", "2", "--hires-strength", "0.5"]]
)
def test_other_options_apply_to_every_line(options: list[str], folder: Path, model_folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)).save("in.png")
    Path("prompts.txt").write_text("a cat\na dog --steps 4\n")
    for _ in range(2):  # the second time all exist
        assert generate(model_folder, "--prompts", "prompts.txt", "-o", "out", *options) == 0
    recipes = [read_recipe(Path("out", name)) for name in ("1.png", "2.png")]
    assert [(recipe.prompt, recipe.steps) for recipe in recipes] == [("a cat", 2), ("a dog", 4)]
    sizes = {Image.open(path).size for path in Path("out").iterdir()}
    assert sizes == ({(24, 16)} if "--image" in options else {(32, 32)})
    assert all(recipe.image_hash if "--image" in options else recipe.hires == 2 for recipe in recipes)
