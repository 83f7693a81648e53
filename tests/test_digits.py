"""The digits example: the folders, training in pixel space, and bits per pixel."""

import json
import math
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from examples.digits import likelihood, prepare
from latentdiff import LatentDiffusionPipeline
from latentdiff.config.base import load_yaml
from latentdiff.config.model import IdentityVAEConfig, side_multiple
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.config.train import train_config
from latentdiff.data.buckets import Fitting
from latentdiff.errors import InputError
from latentdiff.sampling.loop import Denoiser, Levels
from latentdiff.sampling.probability_flow import level_at
from latentdiff.sampling.schedule import Schedule
from latentdiff.training.train import train
from tests.small import small_vae_config

CONFIGS = Path(__file__).parents[1] / "configs" / "digits"


def made_up() -> tuple[np.ndarray, list[int]]:
    grey = np.random.default_rng(0).integers(0, prepare.LEVELS, (200, 8, 8)).astype(float)
    return grey, [k % 10 for k in range(200)]


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prepare, "_read", made_up)
    prepare.prepare(tmp_path / "digits")
    return tmp_path / "digits"


def run(name: str, digits: Path, *overrides: str, resume: bool = False) -> Path:
    """The config with fewer pictures and steps."""
    output = digits.parent / name
    few = [
        f"data.train={digits}/train",
        f"data.held_out={digits}/held_out",
        "data.batch_size=4",
        f"run.output={output}",
    ]
    train(load_yaml(train_config, CONFIGS / f"{name}.yaml", [*few, 'run.mixed_precision="no"', *overrides]), resume)
    return output


def test_scikit_learns_digits_are_written_unchanged(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    prepare.prepare(tmp_path / "digits")
    found = {path: np.asarray(Image.open(path)) for path in sorted((tmp_path / "digits").rglob("*.png"))}
    held_out = [path for path in found if path.parts[-3] == "held_out"]
    assert (len(found), len(held_out)) == (1797, 176)
    digits = datasets.load_digits()
    expected = sorted((prepare.WORDS[d], g.tobytes()) for d, g in zip(digits.target, digits.images, strict=True))
    assert sorted((path.parent.name, (grey / 255 * 16).round().tobytes()) for path, grey in found.items()) == expected


def test_every_tenth_of_a_class_is_held_out(digits: Path) -> None:
    for word in prepare.WORDS:
        assert [path.stem for path in sorted((digits / "held_out" / word).iterdir())] == ["009", "019"]
        assert len(list((digits / "train" / word).iterdir())) == 18


def test_an_existing_folder_is_a_one_line_error(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare", str(digits)])
        assert prepare.main() == 2
    assert capsys.readouterr().err.strip().endswith("is not an empty folder; choose another, or delete it first")
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize("kind", ["unconditional", "class_conditional"])
def test_the_configs_train_resume_and_make_models(
    kind: str, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = run("text_encoder", digits, "optim.max_steps=2")
    small = ["model.block_out_channels=[16, 16]", "sample_steps=2", f"text_encoder={text}/model"]
    run(kind, digits, *small, "optim.max_steps=2", "run.checkpoint_every=2", "run.log_every=1")
    output = run(kind, digits, *small, "optim.max_steps=3", "run.log_every=1", resume=True)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    pipe = LatentDiffusionPipeline.from_pretrained(output / "model", device="cpu")
    image = np.asarray(pipe("three", num_inference_steps=2, seed=0).images[0])
    assert image.shape == (8, 8, 3) and (image == image[..., :1]).all()
    with pytest.raises(Exception, match=r"latentdiff|IdentityVAE"):
        diffusers.StableDiffusionPipeline.from_pretrained(output / "model")

    monkeypatch.setattr(sys, "argv", ["likelihood", str(output), "--sheet", str(output / "missing" / "sheet.png")])
    capsys.readouterr()
    assert likelihood.main() == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "missing does not exist; create it first" in printed.err
    monkeypatch.setattr(sys, "argv", ["likelihood", str(output), "--sheet", str(output / "sheet.png")])
    monkeypatch.setattr(likelihood, "SHOWN", 4)
    monkeypatch.setattr(likelihood, "AT_ONCE", 12)
    monkeypatch.setattr(
        likelihood, "TOLERANCE", 0.1
    )  # with little training, the U-Net's output depends on the timestep
    assert likelihood.main() == 0
    words = capsys.readouterr().out
    assert "bits per pixel (upper bound) over 20 held-out pictures" in words
    assert Image.open(output / "sheet.png").size == (16 * 10 * 6, 10 * 6)


@pytest.mark.parametrize("channels", [(4, 4), (1, 4), (1, 3), (3, 1)])
def test_pixel_space_has_one_channel_or_three(channels: tuple[int, int]) -> None:
    needs, gives = channels
    changes = [f"model.in_channels={needs}", f"model.out_channels={gives}"]
    with pytest.raises(InputError, match=rf"model\.in_channels={needs}, model\.out_channels={gives}; make both 1 or 3"):
        load_yaml(train_config, CONFIGS / "unconditional.yaml", changes)


def test_buckets_of_pixels_have_sides_that_the_unet_halves_evenly() -> None:
    levels = ["data.buckets=true", "data.resolution=16", "model.block_out_channels=[16, 16]"]
    config = load_yaml(train_config, CONFIGS / "unconditional.yaml", levels)
    multiple = side_multiple(config.model, IdentityVAEConfig())
    assert multiple == 2 and side_multiple(config.model, small_vae_config(block_out_channels=(8, 8, 8))) == 4
    sides = {side for size in Fitting.of(config.data, multiple).sizes for side in size}
    assert len(sides) > 5 and all(side % 2 == 0 for side in sides)


def knows_the_levels(schedule: Schedule, values: Tensor) -> Denoiser:
    """A perfect model of independent pixels with uniformly distributed levels."""

    def denoiser(x: Tensor, levels: Levels) -> Tensor:
        level = level_at(schedule, levels.timesteps[0])
        distance = ((x[..., None] - level.alpha * values) / level.sigma).square()
        return (distance.mul(-0.5).softmax(-1) * values).sum(-1)

    return denoiser


def test_a_perfect_model_needs_the_entropy() -> None:
    levels, zero_snr = 3, {"prediction_type": "sample", "rescale_betas_zero_snr": True}
    schedule = Schedule(ScheduleConfig.model_validate({"beta_schedule": "squaredcos_cap_v2"} | zero_snr))
    grey = torch.randint(0, levels, (400, 1, 1, 2))
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    found = likelihood.bits(knows_the_levels(schedule, values), schedule, grey, levels)
    assert found.mean().item() == pytest.approx(math.log2(levels), abs=4 * found.std().item() / 20)
    assert found.std() < 0.5


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("", ""), ["--levels", "1"], "--levels 1 must be at least 2"),
        (("vae: null", "vae: somewhere"), [], "is not a model of grey pixels"),
        (("", ""), [], "has no held-out pictures"),
    ],
)
def test_models_without_a_pixel_likelihood_are_one_line_errors(
    change: tuple[str, str], options: list[str], message: str, digits: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    text = run("text_encoder", digits, "optim.max_steps=2")
    small = ["model.block_out_channels=[16, 16]", "sample_steps=2", f"text_encoder={text}/model"]
    output = run("unconditional", digits, *small, "optim.max_steps=1")
    kept = output / "config.yaml"
    kept.write_text(kept.read_text().replace(*change))
    monkeypatch.setattr(likelihood, "read_parts", lambda data: (["a row"], []))
    monkeypatch.setattr(sys, "argv", ["likelihood", str(output), *options])
    capsys.readouterr()
    assert likelihood.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_independent_bits_have_their_closed_form() -> None:
    train = torch.tensor([0, 0, 0, 1]).view(4, 1, 1, 1)
    expected = -(3 / 4 * math.log2(4 / 6) + 1 / 4 * math.log2(2 / 6))
    assert likelihood.independent_bits(train, train, 2) == pytest.approx(expected)
