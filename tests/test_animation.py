"""Animations: the content of frames, the files that contain them, and interrupted runs."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sd_parsers import ParserManager

from latentdiff import LatentDiffusionPipeline
from latentdiff.animation import animate, between, mix
from latentdiff.cli import main
from latentdiff.errors import InputError
from latentdiff.inputs import read_inputs
from latentdiff.models.conditioning import Conditioning
from latentdiff.recipe import read_any, read_recipe
from latentdiff.sampling.interpolation import slerp

PROMPTS = ["a red apple", "a cat face", "猫"]


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_key_frames_are_images_of_their_prompts(sampler: str, pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 4, "sampler": sampler}
    frames = dict(animate(pipe, PROMPTS, 5, frames=3, batch_size=4, **settings))
    assert list(frames) == list(range(7))
    images = pipe(PROMPTS, seed=5, **settings).images
    for k in range(3) if sampler != "euler_ancestral" else range(1):  # all frames share the noise of later steps
        assert np.abs(as_array(frames[3 * k]) - as_array(images[k])).max() <= 1
    steps = [np.abs(as_array(frames[k + 1]) - as_array(frames[k])).mean() for k in range(6)]
    assert max(steps) < np.abs(as_array(frames[0]) - as_array(frames[6])).mean() + 5


def test_frames_interpolate_noise_and_prompts(pipe: LatentDiffusionPipeline) -> None:
    first, second = pipe.start(read_inputs(pipe.limits, PROMPTS[:2], seed=5))
    row = between(first, second, 0.3)
    assert torch.equal(row.state.latents, slerp(first.state.latents, second.state.latents, 0.3))
    hidden = [one.positive[0].at(0).hidden for one in (first, second, row)]
    torch.testing.assert_close(hidden[2], 0.7 * hidden[0] + 0.3 * hidden[1])
    assert row.positive[0].at(0).keys != first.positive[0].at(0).keys  # fast layers cache by key


@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
def test_prompts_of_different_lengths_are_interpolated(folder: str, request: pytest.FixtureRequest) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(request.getfixturevalue(folder), device="cpu", dtype="float32")
    long = "a red apple, " * 12
    parts = [pipe.encode(text).with_time_ids(16, 16, 0, 0, 16, 16) for text in (PROMPTS[0], long)]
    assert parts[1].tokens > parts[0].tokens

    def output(conditioning: Conditioning) -> torch.Tensor:
        with torch.no_grad():
            return pipe.denoiser(torch.ones(1, 4, 8, 8), torch.tensor([500.0]), conditioning)

    for k in range(2):
        torch.testing.assert_close(output(mix(*parts, k)), output(parts[k]), atol=1e-4, rtol=1e-3)
    frames = list(animate(pipe, [PROMPTS[0], long], 1, frames=2, num_inference_steps=2))
    assert len(frames) == 3


def test_existing_batches_are_not_generated_again(pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"frames": 4, "batch_size": 2, "num_inference_steps": 2}
    everything = dict(animate(pipe, PROMPTS[:2], 5, **settings))
    some = dict(animate(pipe, PROMPTS[:2], 5, done={0, 1, 2}, **settings))
    assert list(some) == [2, 3, 4]
    assert all(np.array_equal(as_array(some[k]), as_array(everything[k])) for k in some)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": PROMPTS[:1]}, "an animation requires two prompts"),
        ({"prompts": ["a AND b", "c"]}, "cannot contain AND or schedules"),
        ({"prompts": ["a", "[b:c:0.5]"]}, "cannot contain AND or schedules"),
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"frames": 10**6}, "more than 100000"),
        ({"seed": [1]}, "seed has 1 numbers for 2 images"),
    ],
)
def test_settings_that_cannot_be_animated_are_errors(
    change: dict[str, Any], message: str, pipe: LatentDiffusionPipeline
) -> None:
    arguments: dict[str, Any] = {"prompts": PROMPTS[:2], "num_inference_steps": 2} | change
    with pytest.raises(InputError, match=re.escape(message)):
        list(animate(pipe, **arguments))


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["latentdiff", *map(str, arguments)])
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def words(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    return ["--model", model_folder, "--steps", 2, "--frames", 3, "--batch-size", 2]


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_files_contain_frames_and_recipe(suffix: str, words: list[object]) -> None:
    assert run("animate", *PROMPTS[:2], "--seed", "5,9", "--fps", 10, *words, "-o", f"a.{suffix}") == 0
    with Image.open(f"a.{suffix}") as image:
        assert image.n_frames == 4 and image.info["loop"] == 0
        image.seek(1)
        second = as_array(image)
        assert image.info["duration"] == 100
    recipe = read_recipe(Path(f"a.{suffix}"))
    assert recipe.animation is not None
    theirs = ParserManager().parse(f"a.{suffix}")  # which reads no GIF
    assert (theirs is None) == (suffix == "gif")
    assert theirs is None or [prompt.value for prompt in theirs.prompts] == PROMPTS[:1]
    assert recipe.animation.model_dump(exclude_none=True) == {
        "prompts": tuple(PROMPTS[:2]), "seeds": (5, 9), "frames": 3, "fps": 10.0,
    }  # fmt: skip
    assert run("animate", "--recipe", f"a.{suffix}", "--model", words[1], "-o", f"b.{suffix}") == 0
    with Image.open(f"b.{suffix}") as image:
        image.seek(1)
        assert np.abs(as_array(image) - second).max() <= 2 and read_recipe(Path(f"b.{suffix}")) == recipe


def test_mp4_requires_its_extra_and_contains_the_recipe(
    words: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    av = pytest.importorskip("av")
    assert run("animate", *PROMPTS[:2], "--seed", 5, *words, "-o", "a.mp4") == 0
    with av.open("a.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (16, 16, 3)
    assert read_any(Path("a.mp4")).settings["seed"] == 5
    monkeypatch.setattr("latentdiff.recipe.animations.find_spec", lambda name: None)
    assert run("animate", *PROMPTS[:2], *words, "-o", "b.mp4") == 2
    assert 'pip install "latentdiff[video]"' in capsys.readouterr().err


def test_an_animation_continues(words: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["animate", PROMPTS[0], "--seed", "1,2", *words, "-o", "a.png", "--preview", "look.png"]
    assert run(*words) == 0
    assert Path("look.png").exists()
    made = Path("a.png").read_bytes()
    frames = sorted(Path("a-frames").iterdir())
    assert len(frames) == 4
    next(path for path in frames if read_recipe(path).animation.frame == 3).unlink()  # type: ignore[union-attr]
    Path("a.png").unlink()
    calls: list[int] = []
    sample_rows = LatentDiffusionPipeline.sample_rows

    def counted(self: LatentDiffusionPipeline, rows: Any, *rest: Any) -> Any:
        calls.append(len(rows))
        return sample_rows(self, rows, *rest)

    monkeypatch.setattr(LatentDiffusionPipeline, "sample_rows", counted)
    assert run(*words) == 0
    assert calls == [2] and Path("a.png").read_bytes() == made


def test_recipes_of_animations_are_for_animate(words: list[object], capsys: pytest.CaptureFixture) -> None:
    assert run("animate", *PROMPTS[:2], *words, "-o", "a.webp") == 0
    assert run("generate", "--recipe", "a.webp", "-o", "x.png") == 2
    assert "use latentdiff animate --recipe" in capsys.readouterr().err
    assert run("generate", PROMPTS[0], "--steps", 1, "--model", words[1], "-o", "one.png") == 0
    assert run("animate", "--recipe", "one.png", "-o", "x.webp") == 2
    assert "is not an animation; use latentdiff generate --recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "-o", "x.jpg"], "-o x.jpg must end in one of .webp, .gif, .png, .mp4"),
        (["a", "-o", "x.webp"], "an animation requires two prompts"),
        (["-o", "x.webp"], "there is no prompt"),
        (["a", "b", "--seed", "one", "-o", "x.webp"], "--seed one: write one whole number"),
        (["a", "b", "--seed", "1,2,3", "-o", "x.webp"], "seed has 3 numbers for 2 images"),
        (["a", "b", "--fps", "0", "-o", "x.gif"], "--fps 0 must be from 0.1 to 50 for .gif"),
        (["a", "b", "--fps", "80", "-o", "x.gif"], "--fps 80 must be from 0.1 to 50 for .gif"),
        (["a", "b", "-o", "gone/x.webp"], "the folder gone does not exist"),
        (["a", "b", "--sampler", "dim", "-o", "x.webp"], "did you mean 'ddim'"),
    ],
)
def test_errors_leave_no_files(
    arguments: list[str], message: str, words: list[object], capsys: pytest.CaptureFixture
) -> None:
    assert run("animate", *arguments, *words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("frames")]
    assert len(lines) == 1 and message in lines[0]
    assert list(Path().iterdir()) == []
