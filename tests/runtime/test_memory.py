"""Peak memory: reported for the requested device, in bytes on all systems, and close to the memory needed."""

import json
import platform
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latentdiff.checkpoints.components import write_pipeline
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.memory import peak_memory
from latentdiff.runtime.packed import cannot_pack
from tests.small import small_components, small_unet_config

packed_on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or cannot_pack(torch.empty(0)) != "",
    reason="another allocator, or nothing is packed",
)
TWO_PICTURES = """
import json, sys, torch
from latentdiff.pipeline import LatentDiffusionPipeline

def held(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return 1024 * int(line.split()[1])

LatentDiffusionPipeline.from_pretrained(sys.argv[1], device="cpu", dtype="float32")("a", num_inference_steps=2)
found = [held("VmRSS")]
pipe = LatentDiffusionPipeline.from_pretrained(sys.argv[2], device="cpu", dtype="float32")
for _ in range(2):
    pipe("a", num_inference_steps=2)
    found += [held("VmHWM") - found[0], held("VmRSS") - found[0]]
weights = sum(weight.nbytes for weight in pipe.denoiser.parameters())
del pipe
print(json.dumps([weights, *found[1:], held("VmRSS") - found[0]]))
"""


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3 * 1024), ("darwin", 3)])
def test_systems_count_in_their_own_units(platform: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3))
    assert peak_memory(torch.device("cpu")) == expected


def test_peak_memory_of_a_gpu_is_that_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {torch.device("cuda:0"): 1, torch.device("cuda:1"): 2}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: held[device])
    assert peak_memory(torch.device("cuda:1")) == 2


@packed_on_glibc
def test_a_model_takes_the_memory_of_its_weights_once(model_folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel(small_unet_config(block_out_channels=(192, 512)))
    write_pipeline(replace(small_components(), denoiser=unet), tmp_path / "large")
    command = [sys.executable, "-c", TWO_PICTURES, str(model_folder), str(tmp_path / "large")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weights, *found, left = json.loads(answer)
    assert max(found) < 1.2 * weights and left < 0.2 * weights
