"""The command line: files, messages and exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from latentdiff import LatentDiffusionPipeline, cli
from latentdiff.checkpoints.folder import GENERATION
from latentdiff.recipe import read_recipe
from latentdiff.recipe.model_hash import hash_model

PROMPT = "a red apple"
ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "emoji"


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command's exit code, run in this process."""
    monkeypatch.setattr(sys, "argv", ["latentdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        sys.exit(0)
    return int(stopped.value.code or 0)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["train", "--help"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['latentdiff', *{arguments}]\nfrom latentdiff.cli import main\n" + (
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "latentdiff" in done.stdout
    assert done.stderr.strip() == "False False"


def test_a_recipe_reproduces_the_pixels(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = tmp_path / "apple.png", tmp_path / "again.png", tmp_path / "other.png"
    options = ["--model", model_folder, "--steps", 3, "--eta", 0.5, "--guidance-scale", 2, "--height", 24, "--seed", 9]
    options += ["--guidance-interval", 0.2, 1.0, "--dtype", "float32", "--approximate", "reuse"]
    assert run("generate", PROMPT, "--negative-prompt", "猫", "-o", first, *options, monkeypatch=monkeypatch) == 0
    recipe = read_recipe(first)
    assert recipe.model_dump(exclude_none=True) | {"version": ""} == {
        "prompt": PROMPT, "negative_prompt": "猫", "prompt_syntax": "a1111", "seed": 9, "sampler": "ddim", "eta": 0.5,
        "steps": 3, "guidance_scale": 2.0, "guidance_interval": (0.2, 1.0), "height": 24, "width": 16,
        "dtype": "float32", "optimize": "auto", "approximate": ("reuse",), "low_memory": False,
        "model": str(model_folder),
        "loras": (), "embeddings": (), "model_hash": hash_model(model_folder), "hashes": {}, "version": "",
    }  # fmt: skip
    assert run("generate", "--recipe", first, "-o", again, monkeypatch=monkeypatch) == 0
    assert np.array_equal(pixels(first), pixels(again))
    assert (
        run("generate", "--from-image", first, "--seed", 10, "--approximate", "", "-o", other, monkeypatch=monkeypatch)
        == 0
    )
    assert read_recipe(other).approximate == () and read_recipe(again).approximate == ("reuse",)
    assert not np.array_equal(pixels(first), pixels(other))


def test_the_recipe_stores_execution_options_and_the_command_line_overrides_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = tmp_path / "first.png", tmp_path / "again.png", tmp_path / "other.png"

    def make(*words: object) -> int:
        return run("generate", *words, monkeypatch=monkeypatch)

    options = ["--model", model_folder, "--steps", 1, "--optimize", "off", "--low-memory"]
    assert make(PROMPT, "-o", first, *options) == 0
    assert make("--from-image", first, "-o", again) == 0
    assert make("--from-image", first, "-o", other, "--optimize", "auto", "--no-low-memory") == 0
    ways = [(recipe.optimize, recipe.low_memory) for recipe in map(read_recipe, (first, again, other))]
    assert ways == [("off", True), ("off", True), ("auto", False)]
    capsys.readouterr()
    assert make("--from-image", first, "-o", again, "--approximate", "reuse, int8") == 2
    undo = f"--optimize auto --no-low-memory overrides the setting of {first}"
    assert undo in (error := capsys.readouterr().err) and "['reuse', 'int8']" in error and error.count("\n") == 1
    assert make("--from-image", other, "-o", first, "--approximate", " reuse ,") == 0
    capsys.readouterr()
    assert make("--from-image", first, "-o", again, "--optimize", "off") == 2
    assert f'--approximate "" overrides the setting of {first}' in capsys.readouterr().err
    assert make("--from-image", first, "-o", again, "--optimize", "off", "--approximate", "") == 0
    assert read_recipe(again).approximate == () and read_recipe(again).optimize == "off"


def test_the_recipe_stores_the_default_settings_of_the_model(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = shutil.copytree(model_folder, tmp_path / "model"), tmp_path / "apple.png"
    (folder / GENERATION).write_text('{"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": "ddpm"}')
    assert run("generate", PROMPT, "--model", folder, "--steps", 2, "-o", out, monkeypatch=monkeypatch) == 0
    recipe = read_recipe(out)
    assert (recipe.steps, recipe.guidance_scale, recipe.sampler) == (2, 2.0, "ddpm")


def test_several_pictures_are_numbered_and_have_different_seeds(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", model_folder, "--steps", 2, "--num-images", 2, "--seed", 5]
    assert run("generate", PROMPT, "猫", "-o", tmp_path / "x.png", *options, monkeypatch=monkeypatch) == 0
    paths = [tmp_path / f"x-{k}.png" for k in range(1, 5)]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert sorted(tmp_path.iterdir()) == paths
    recipes = [read_recipe(path) for path in paths]
    assert [(r.prompt, r.seed) for r in recipes] == [(PROMPT, 5), (PROMPT, 6), ("猫", 7), ("猫", 8)]
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu")
    alone = np.asarray(pipe("猫", seed=8, num_inference_steps=2).images[0]).astype(int)
    assert np.abs(alone - pixels(paths[3])).max() <= 1


def test_low_memory_generates_the_same_picture_and_the_bar_shows_peak_memory(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    options = ["--model", model_folder, "--steps", 2, "--seed", 5, "--dtype", "float32"]
    for name, more in (("x.png", []), ("y.png", ["--low-memory"])):
        assert run("generate", PROMPT, "-o", tmp_path / name, *options, *more, monkeypatch=monkeypatch) == 0
        printed = capsys.readouterr()
        assert printed.out == f"{tmp_path / name}\n"
        assert re.search(r"memory=\d+\.\dG", printed.err)
    first, second = (pixels(tmp_path / name).astype(int) for name in ("x.png", "y.png"))
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.png"], "there is no prompt"),
        ([PROMPT, "-o", "x.tiff"], "must end in one of .png, .webp, .jpg, .jpeg; try x.png"),
        ([PROMPT, "-o", "nowhere/x.png"], "the folder nowhere does not exist"),
        ([PROMPT, "-o", "folder.png"], "is a folder"),
        ([PROMPT, "-o", "x.png", "--num-images", "0"], "must be at least 1"),
        ([PROMPT, "-o", "x.png", "--height", "15"], "height=15 must be a multiple of 2"),
        ([PROMPT, "-o", "x.png", "--sampler", "dpm_2m"], "did you mean 'dpmpp_2m'"),
        ([PROMPT, "-o", "x.png", "--steps", "0"], "num_inference_steps=0"),
        ([PROMPT, "-o", "x.png", "--steps", "1001"], "num_inference_steps=1001"),
        ([PROMPT, "-o", "x.png", "--dtype", "float61"], "did you mean 'float16'"),
        ([PROMPT, "-o", "x.png", "--device", "gpu"], "device='gpu' is not usable here"),
        ([PROMPT, "-o", "x.png", "--device", "cuda:99"], "device='cuda:99' is not usable here"),
        ([PROMPT, "-o", "x.png", "--device", "meta"], "device='meta' is not usable here"),
        ([PROMPT, "-o", "x.png", "--optimize", "turbo", "--model", "gone"], "known: auto, compile, off"),
        ([PROMPT, "-o", "x.png", "--model", "no/such/model"], "does not exist"),
        ([PROMPT, "-o", "x.png", "--model", "."], "give a folder that a pipeline was saved to"),
        ([PROMPT, "-o", "x.png", "--low-memory", "--lora", "x"], "--low-memory cannot be combined with --lora"),
        (
            [PROMPT, "-o", "x.png", "--low-memory", "--embedding", "x"],
            "--low-memory cannot be combined with --embedding",
        ),
        ([PROMPT, "-o", "x.png", "--low-memory", "--device", "meta"], "low_memory=True runs on the CPU"),
        (["-o", "x.png", "--from-image", "gone.png"], "does not exist"),
        (["-o", "x.png", "--from-image", "plain.png"], "contains no recipe"),
        (["-o", "x.png", "--from-image", "text.png"], "not a readable PNG"),
        (["-o", "x.png", "--from-image", "odd.png"], "its recipe is damaged"),
        ([PROMPT, "-o", "x.png", "--approximate", "reuse,reus"], "approximate='reus' is unknown; did you mean 'reuse'"),
    ],
)
def test_errors_print_one_line_and_exit_with_2(
    arguments: list[str], message: str, model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (4, 4)).save("plain.png")
    odd = PngImagePlugin.PngInfo()
    odd.add_text("latentdiff", '{"seed": "x"}')
    Image.new("RGB", (4, 4)).save("odd.png", pnginfo=odd)
    before = sorted(tmp_path.rglob("*"))
    model = [] if "--model" in arguments else ["--model", str(model_folder)]
    assert run("generate", *arguments, *model, monkeypatch=monkeypatch) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("sampling")]
    assert printed.out == "" and len(lines) == 1 and message in lines[0] and lines[0].startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "gone.yaml cannot be read"),
        ([], "there is no config file"),
        (["vae.yaml", "--set", "optim.max_step=1"], "did you mean 'max_steps'"),
        (["vae.yaml"], "data/emoji/train does not exist"),
        (["unet.yaml", "--set", "run.output=run"], "vae/model/config.json cannot be read"),
    ],
)
def test_training_errors_print_one_line_and_exit_with_2(
    arguments: list[str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("vae", "unet"):
        text = (CONFIGS / f"{name}.yaml").read_text().replace("runs/emoji-", "")
        (tmp_path / f"{name}.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    assert run("train", *arguments, monkeypatch=monkeypatch) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_schema_of_config_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--schema", monkeypatch=monkeypatch) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["discriminator"]["mapping"]) == {"vae", "text_encoder", "unet", "finetune"}


def test_words_over_the_token_limit_warn_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    options = ["--steps", "1", "--model", str(model_folder), "-o", str(tmp_path / "x.png"), "--prompt-syntax", "plain"]
    command = [sys.executable, "-m", "latentdiff", "generate", "a cat face " * 9, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.startswith("warning: the prompt exceeds the model's token limit")
    assert done.stderr.count("\n") == 1


def test_a_folder_without_write_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run("generate", PROMPT, "-o", tmp_path / "x.png", monkeypatch=monkeypatch) == 2
    assert "is not writable" in capsys.readouterr().err


def test_a_model_other_than_that_of_the_recipe_is_an_error(
    model_folder: Path,
    xl_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    linked = tmp_path / "model"
    linked.symlink_to(model_folder)
    assert (
        run("generate", PROMPT, "-o", tmp_path / "a.png", "--model", linked, "--steps", 1, monkeypatch=monkeypatch) == 0
    )
    linked.unlink()
    assert run("generate", "--from-image", tmp_path / "a.png", "-o", tmp_path / "b.png", monkeypatch=monkeypatch) == 2
    assert f"was made with {linked}, which does not exist here; pass its path with --model" in capsys.readouterr().err
    linked.symlink_to(xl_folder)
    assert run("generate", "--from-image", tmp_path / "a.png", "-o", tmp_path / "b.png", monkeypatch=monkeypatch) == 2
    assert "was made with model" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_a_full_disk_is_a_one_line_error(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(LatentDiffusionPipeline, "__call__", no_room)
    words = ["generate", PROMPT, "-o", tmp_path / "x.png", "--model", model_folder]
    assert run(*words, monkeypatch=monkeypatch) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: out of memory (DefaultCPU") and "generate smaller images" in lines[-1]
    assert not (tmp_path / "x.png").exists()


def test_auto_batch_requires_a_single_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", ROOT / "configs" / "emoji" / "vae.yaml", "--auto-batch", "--num-processes", 2]
    assert run(*words, monkeypatch=monkeypatch) == 2
    assert "--auto-batch requires a single process" in capsys.readouterr().err
