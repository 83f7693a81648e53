"""Many calls of one pipeline: memory stays flat, and the model is the same to the bit afterwards."""

import gc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from latentdiff import LatentDiffusionPipeline
from tests.checkpoints.test_lora_stack import trained

CALLS, WARM_UP = 500, 100
EVERY = 10  # calls between two measurements of memory
MAX_GROWTH = 0.02  # of the resident memory between the last warm-up call and the last call
CALL: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"height": 24, "width": 32},
    {"sampler": "heun", "guidance_scale": 1.0},
    {"sampler": "dpmpp_2m", "clip_skip": 1, "num_images_per_prompt": 3},
    {"sampler": "euler_ancestral", "negative_prompt": "(wrong:1.2) colours"},
]


@pytest.mark.slow
def test_500_calls_with_changing_prompts_loras_and_options_hold_memory_flat(model_folder: Path, tmp_path: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    before = pipe("a red apple", seed=1, **CALL).images
    files = [trained(model_folder, tmp_path / name, k) for k, name in enumerate(("one", "two", "three"))]
    sizes, process = [], psutil.Process()
    for k in range(CALLS):
        pipe.load_lora(files[k % 3], "new", 0.5)
        if k % 7 == 0:
            pipe.load_lora(files[(k + 1) % 3], "other", (0.0, 1.0))
            pipe.set_adapters({"new": k / CALLS, "other": 0.3})
        prompt = f"a [red|(green:{1 + k / CALLS})] apple {k} <lora:new:{k % 5 / 4}>, " * (1 + k % 3)
        assert torch.isfinite(pipe(prompt, seed=k, **CALL | OPTIONS[k % len(OPTIONS)]).images).all()
        pipe.unload_lora()
        if k % EVERY == EVERY - 1:
            gc.collect()
            sizes.append(process.memory_info().rss)
    warm = WARM_UP // EVERY
    assert max(sizes[warm:]) < (1 + MAX_GROWTH) * max(sizes[:warm])
    assert torch.equal(pipe("a red apple", seed=1, **CALL).images, before) and not pipe.adapters
