"""The benchmarks of fine-tuning: their folders, both sides, and the tables."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import finetune
from benchmarks.finetune_calculation import calculate
from benchmarks.finetune_memory import tabulate
from benchmarks.finetune_sides import Settings, run_side
from examples.finetune.folders import GOLD, INDIGO, SHAPES, duotone
from latentdiff import LatentDiffusionPipeline
from tests.small import small_unet_config


def test_prompts_name_what_the_folder_teaches() -> None:
    assert finetune.prompts("blob", ["bus", "eagle"]) == {
        "named": ["a bus, blob style", "an eagle, blob style"], "plain": ["a bus", "an eagle"],
    }  # fmt: skip
    assert finetune.prompts("subject", ["bus"])["named"][:2] == ["a sks koala", "a sks koala, noto style"]


def test_the_kept_share_is_relative_to_the_base_model() -> None:
    base = {"folder": "blob", "side": "base", "options": {}, "likeness": 0.0, "concept": 0.9, "kept": 0.8}
    ours = base | {"side": "ours", "options": {"rank": "4"}, "kept": 0.6, "steps": 9, "cpu_seconds": 12.3}
    lines = finetune.tabulate([base, ours], {"blob": base}).splitlines()
    assert lines[-1] == "| blob | ours | rank=4 | 9 | 0.00 | 0.90 | 0.75 | 12 |"


def test_duotone_blends_two_colours_on_four_shapes() -> None:
    ramp = Image.linear_gradient("L").resize((128, 128))
    made = [duotone(ramp, place) for place in range(5)]
    assert [image.size for image in made] == [*SHAPES, SHAPES[0]]
    ends = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in (INDIGO, GOLD)]
    assert [made[0].getpixel((64, y)) for y in (0, 127)] == ends


def test_memory_is_relative_to_diffusers() -> None:
    found = {"diffusers": {"peak_bytes": 4 * 2**30}, "ours": {"peak_bytes": 3 * 2**30}}
    assert tabulate(found).splitlines()[-1] == "| ours | 3.00 GiB | 0.75 |"


@pytest.mark.slow
def test_checkpointing_needs_less_and_weights_are_counted() -> None:
    config = small_unet_config()
    plain, checkpointed = (calculate(config, 8, 4, checkpointing, rank=2) for checkpointing in (False, True))
    assert plain.frozen == checkpointed.frozen and plain.trained == checkpointed.trained > 0
    assert checkpointed.activations < plain.activations < calculate(config, 16, 4, False, rank=2).activations


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ours", "diffusers"])
def test_both_sides_train_a_lora_that_loads(side: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for k in range(4):
        Image.effect_noise((16, 16), 30 + k).convert("RGB").save(tmp_path / "pictures" / f"a red apple {k}.png")
    settings = Settings(
        folder=tmp_path / "pictures", output=tmp_path / "run", base=str(model_folder), steps=2, batch_size=2, rank=2
    )
    found = run_side(side, settings)
    assert found["cpu_seconds"] > 0 and found["peak_bytes"] > 2**27
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    before = pipe("a red apple", seed=1, num_inference_steps=1, output_type="pt").images
    pipe.load_lora(tmp_path / "run")
    assert not torch.equal(pipe("a red apple", seed=1, num_inference_steps=1, output_type="pt").images, before)
