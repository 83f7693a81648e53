"""Datasets of many aspect ratios: every split of a global batch gives the same losses."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.small_runs import Make, losses, run
from tests.training.test_processes import logged, train_in_two

SIZES = [(16, 16)] * 9 + [(24, 12)] * 6 + [(12, 24)] * 4 + [(36, 12)] * 2 + [(20, 16)] * 3


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for k, size in enumerate(SIZES):
        Image.effect_noise((2 * size[0], 2 * size[1]), 40 + 5 * k).convert("RGB").save(folder / f"{k:02}.png")
        (folder / f"{k:02}.txt").write_text(f"a red disc {k}")
    return folder


def config(make: Make, mixed: Path, output: Path, batch: int, accumulation: int = 1) -> dict[str, Any]:
    made = make(output, max_steps=5)
    made["data"] |= {"train": str(mixed), "held_out": str(mixed), "batch_size": batch, "flip": 0.5}
    made["run"] |= {"gradient_accumulation_steps": accumulation}
    return made


def test_accumulation_gives_the_losses_of_one_batch(unet_config: Make, mixed: Path, tmp_path: Path) -> None:
    whole = losses(run(config(unet_config, mixed, tmp_path / "whole", 8)))
    parts = losses(run(config(unet_config, mixed, tmp_path / "parts", 2, 4)))
    assert len(whole) == 5 and parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(unet_config: Make, mixed: Path, tmp_path: Path) -> None:
    whole = losses(run(config(unet_config, mixed, tmp_path / "one", 8)))
    train_in_two(config(unet_config, mixed, tmp_path / "two", 4))
    assert losses(logged(tmp_path / "two")) == pytest.approx(whole, rel=1e-5)
