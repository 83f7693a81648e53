"""`latentdiff generate` from an image: files, recipes and errors."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from latentdiff.cli import main
from latentdiff.recipe import read_any, read_recipe

PROMPT = "a red apple"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image of 24 x 16 pixels and a mask."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("in.webp", lossless=True)
    mask = Image.new("L", (24, 16))
    mask.paste(255, (10, 6, 14, 10))
    mask.save("mask.png")
    Image.new("L", (24, 16)).save("black.png")
    return tmp_path


def generate(model: Path, *arguments: object) -> int:
    words = ["latentdiff", "generate", PROMPT, "--model", model, "--steps", 4, "--seed", 1, *arguments]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [str(word) for word in words])
        main()
    return int(ended.value.code or 0)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "options",
    [
        ["--strength", 0.5],
        ["--mask", "mask.png", "--mask-blur", 1, "--mask-grow", 1, "--mask-fill", "noise", "--strength", 0.9],
        ["--mask", "mask.png", "--only-masked", 2],
        ["--extend", "left=8,bottom=4", "--no-paste-back"],
        ["--width", 32, "--height", 32, "--fit", "contain"],
    ],
)
def test_the_recipe_of_an_edited_image_reproduces_it(options: list[object], inputs: Path, model_folder: Path) -> None:
    assert generate(model_folder, "--image", "in.webp", *options, "-o", "a.png") == 0
    recipe = read_recipe(Path("a.png"))
    assert recipe.image_hash and (recipe.mask_hash is not None) == ("--mask" in options)
    masks = ["--mask", "mask.png"] if "--mask" in options else []
    assert generate(model_folder, "--recipe", "a.png", "--image", "in.webp", *masks, "-o", "b.webp") == 0
    assert np.array_equal(pixels("a.png"), pixels("b.webp"))
    assert read_recipe(Path("b.webp")) == recipe


@pytest.mark.parametrize(
    "options",
    [
        ["--hires", 1.5, "--hires-steps", 3, "--hires-strength", 0.7],
        ["--hires", 2, "--upscaler", "latent", "--height", 24],
        ["--seamless", "x,y", "--tile", 16, "--width", 40],
        ["--hires", 2, "--image", "in.webp", "--strength", 0.5],
    ],
)
def test_the_recipe_of_an_enlarged_image_reproduces_it(options: list[object], inputs: Path, model_folder: Path) -> None:
    assert generate(model_folder, *options, "-o", "a.png") == 0
    again = ["--image", "in.webp"] if "--image" in options else []
    assert generate(model_folder, "--recipe", "a.png", *again, "-o", "b.png") == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert read_recipe(Path("b.png")) == read_recipe(Path("a.png"))
    recipe = read_recipe(Path("a.png"))
    assert (recipe.hires_strength is not None) == ("--hires" in options)  # a default may change


def test_inputs_that_a_recipe_does_not_contain_are_named_in_the_error(
    inputs: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert generate(model_folder, "--image", "in.webp", "--mask", "mask.png", "-o", "a.png") == 0
    assert generate(model_folder, "--recipe", "a.png", "-o", "b.png") == 2
    assert "does not contain the input; pass it with --image" in capsys.readouterr().err
    assert generate(model_folder, "--recipe", "a.png", "--image", "in.webp", "-o", "b.png") == 2
    assert "does not contain the mask; pass it with --mask" in capsys.readouterr().err
    assert generate(model_folder, "--recipe", "a.png", "--image", "a.png", "--mask", "mask.png", "-o", "b.png") == 0
    assert "was made with a different image" in capsys.readouterr().err


def test_recipes_of_other_programs(inputs: Path, model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(
        "parameters",
        "a cat face\nNegative prompt: x\nSteps: 3, Sampler: Euler a, CFG scale: 2, Seed: 8, Size: 24x16, Model: m, "
        "Clip skip: 2, Token merging ratio: 0.5",
    )
    Image.new("RGB", (4, 4)).save("theirs.png", pnginfo=chunks)
    assert generate(model_folder, "--recipe", "theirs.png", "-o", "ours.jpg") == 0
    assert "not carried over from A1111: Model: m, Token merging ratio: 0.5" in capsys.readouterr().err
    found = read_any(Path("ours.jpg")).settings
    expected = {"sampler": "euler_ancestral", "spacing": "linspace", "guidance_scale": 2.0, "seed": 1, "width": 24}
    expected |= {"clip_skip": 1, "prompt_syntax": "a1111"}
    assert {key: found[key] for key in expected} == expected


def test_a_foreign_spacing_that_the_model_cannot_use_is_named(
    inputs: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Karras' levels are spaced in sigma, which a zero terminal SNR does not have."""
    model = shutil.copytree(model_folder, inputs / "model")
    scheduler = model / "scheduler" / "scheduler_config.json"
    changes = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | changes))
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 2, Seed: 8")
    Image.new("RGB", (4, 4)).save("theirs.png", pnginfo=chunks)
    assert generate(model, "--recipe", "theirs.png", "-o", "ours.png") == 0
    assert "not carried over from A1111: spacing karras, which this model cannot use" in capsys.readouterr().err
    assert "spacing" not in read_any(Path("ours.png")).settings  # the model's
    assert generate(model, "--recipe", "theirs.png", "--spacing", "karras", "-o", "asked.png") == 2
    assert "use spacing='trailing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "mask.png"], "--mask requires an input image"),
        (["--strength", "0.5"], "--strength requires an input image"),
        (["--mask-blur", "2"], "--mask-blur requires an input image"),
        (["--image", "gone.png"], "gone.png cannot be read"),
        (["--image", "in.webp", "--strength", "1.7"], "strength=1.7 must be from 0"),
        (["--image", "in.webp", "--mask", "black.png"], "mask_image is completely black"),
        (["--image", "in.webp", "--fit", "covr"], "did you mean 'cover'"),
        (["--image", "in.webp", "--mask-grow", "2"], "--mask-grow requires a mask"),
        (["--image", "in.webp", "--no-paste-back"], "--no-paste-back requires a mask"),
        (["--hires", "2", "--hires-steps", "0"], "hires_steps=0 must be at least 1"),
        (["--image", "huge.png"], "huge.png: 100000x1000 is more than"),
        (["--preview", "look.jpg"], "--preview look.jpg must end in .png"),
        (["--image", "in.webp", "--extend", "up=3"], "--extend up=3: write the pixels of each edge"),
        (["--image", "in.webp", "--extend", "top=3,top=4"], "--extend top=3,top=4: write the pixels of each edge once"),
        (["--image", "in.webp", "--extend", "left=0"], "extend={'left': 0} adds no pixels"),
        (["--image", "in.webp", "--extend", ""], "--extend is empty"),
        (["--image", "in.webp", "--mask", "mask.png", "--preview", "mask.png"], "would overwrite the file of --mask"),
        (["--hires", "2", "--upscaler", "lanczoz"], "did you mean 'lanczos'"),
        (["--hires-steps", "3"], "--hires-steps requires a second pass; add --hires 2"),
        (["--hires", "1"], "hires=1 must be greater than 1"),
        (["--hires", "2", "--upscaler", "gone.safetensors"], "upscaler='gone.safetensors' is neither a file"),
        (["--preview-every", "2"], "--preview-every 2 requires a file; pass it with --preview"),
        (["--image", "in.webp", "--image-guidance-scale", "1.5"], "--image-guidance-scale 1.5 is for InstructPix2Pix"),
        (["--image", "in.webp", "--mask", "mask.png", "--mask-fill", "blur"], "has no effect at strength 1"),
        (["--seamless", "w"], "seamless='w' must be x, y or x,y"),
        (["--image", "in.webp", "--height", "15"], "height=15 must be a multiple of 2"),
    ],
)
def test_errors_leave_no_files(
    arguments: list[str], message: str, inputs: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    if "huge.png" in arguments:  # Pillow would print a warning
        Image.new("1", (100_000, 1000)).save("huge.png")
    before = sorted(inputs.iterdir())
    assert generate(model_folder, *arguments, "-o", "x.png") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("sampling")]
    assert len(errors) == 1 and message in errors[0]
    assert sorted(inputs.iterdir()) == before
