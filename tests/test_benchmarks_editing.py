"""The benchmark of editing measures what it reports."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import editing
from latentdiff import LatentDiffusionPipeline


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


def test_steps_are_timed_one_by_one(pipe: LatentDiffusionPipeline) -> None:
    assert len(editing.step_seconds(pipe, {"prompt": "a cat", "num_inference_steps": 5})) == 4
    half = {"prompt": "a cat", "num_inference_steps": 6, "image": pipe("a cat", num_inference_steps=1).images[0]}
    assert len(editing.step_seconds(pipe, half | {"strength": 0.5})) == 2


def test_rows_of_the_tables(pipe: LatentDiffusionPipeline) -> None:
    call: dict[str, Any] = {"prompt": "a cat", "seed": 0, "num_inference_steps": 4, "guidance_scale": 2.0}
    rows = editing.additions(pipe, call, rounds=1)
    assert [len(row) for row in rows] == [3, 3, 3] and all(float(row[2].rstrip("%")) > 0 for row in rows)
    [row] = editing.rates(pipe, 2, [2], rounds=1)
    assert row[0] == "batch 2" and float(row[3]) > 0
