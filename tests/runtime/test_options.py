"""`optimize="auto"` changes the speed, not the images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import read_pipeline
from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.errors import InputError
from latentdiff.sampling.loop import StepInfo
from latentdiff.training.lora import add_lora
from tests.small import read_weights


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1), ("bfloat16", 24)])
def test_pictures_stay_the_same(model_folder: Path, dtype: str, most: int) -> None:
    fast, plain = (
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype=dtype, optimize=optimize)
        for optimize in ("auto", "off")
    )
    first, second = (
        np.asarray(pipe("a cat face", num_inference_steps=4, seed=1).images[0]).astype(int) for pipe in (fast, plain)
    )
    assert np.abs(first - second).max() <= most


def test_weights_loaded_after_a_call_affect_the_next_call_and_are_saved_plain(
    model_folder: Path, tmp_path: Path
) -> None:
    parts = read_pipeline(model_folder, torch.float32)
    add_lora(parts, rank=4, text_encoder=True)
    for name, p in [*parts.denoiser.named_parameters(), *parts.text.named_parameters()]:
        p.data += 0.1 * torch.randn_like(p) if "lora" in name else 0
    (tmp_path / "lora").mkdir()
    save_lora(parts, tmp_path / "lora")
    pipe, late = (
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32") for _ in range(2)
    )
    before = latents_of(late)
    late.save_pretrained(tmp_path / "saved")
    for name in ("unet", "vae"):
        saved, was = (read_weights(folder / name) for folder in (tmp_path / "saved", model_folder))
        assert saved.keys() == was.keys() and all(torch.equal(saved[key], was[key]) for key in was)
    for loading in (pipe, late):
        loading.load_lora(tmp_path / "lora")
    assert torch.allclose(latents_of(late), latents_of(pipe), atol=1e-5)
    assert not torch.allclose(latents_of(late), before, atol=1e-2)


def latents_of(pipe: LatentDiffusionPipeline) -> torch.Tensor:
    made: torch.Tensor = pipe("a cat face", num_inference_steps=2, seed=1, output_type="latent").images
    return made


def test_an_unknown_optimisation_level_is_an_error() -> None:
    with pytest.raises(InputError, match="optimize='atuo' is unknown; did you mean 'auto'"):
        LatentDiffusionPipeline.from_pretrained(optimize="atuo")


class Waits(TorchDispatchMode):
    """Record operations that would make the host wait for a GPU: reading a value from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_sde"])
def test_no_step_waits_for_the_device(model_folder: Path, sampler: str) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    options: dict[str, Any] = {"num_inference_steps": 4, "seed": 1, "sampler": sampler, "output_type": "latent"}
    pipe("a cat face", **options)
    seen: list[int] = []
    with Waits() as waits:
        pipe("a cat face", **options, callback=lambda *_: seen.append(len(waits.names)))
        steps = len(waits.names)
        torch.ones(1).item()
    assert seen == [seen[0]] * 4 and len(waits.names) == steps + 1  # the mode does detect a number that is read


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_no_step_waits_for_a_gpu(model_folder: Path, sampler: str) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cuda")
    options: dict[str, Any] = {"num_inference_steps": 4, "seed": 1, "sampler": sampler, "output_type": "latent"}
    pipe("a cat face", **options)

    def refuse_waiting(info: StepInfo) -> None:
        """From the second step to the last; afterwards the pipeline reads whether the latents are finite."""
        torch.cuda.set_sync_debug_mode("error" if info.step < info.steps else "default")
        if info.step == 1:
            with pytest.raises(RuntimeError, match="synchronizing"):  # the mode does detect a number that is read
                torch.ones(1, device="cuda").item()

    try:
        pipe("a cat face", **options, callback=refuse_waiting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
