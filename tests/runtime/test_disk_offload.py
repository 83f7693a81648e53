"""Disk offload: the same images, little memory, and no weights left in memory after a call."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError
from latentdiff.models.conditioning import Conditioning
from latentdiff.runtime import disk_offload

PROMPT = "a cat face"


def latents_of(pipe: LatentDiffusionPipeline, seed: int = 1) -> torch.Tensor:
    made: torch.Tensor = pipe(PROMPT, num_inference_steps=3, seed=seed, output_type="latent").images
    return made


def pixels_of(pipe: LatentDiffusionPipeline) -> np.ndarray:
    return np.asarray(pipe(PROMPT, num_inference_steps=3, seed=1).images[0]).astype(int)


def held(pipe: LatentDiffusionPipeline) -> int:
    """Bytes of the storages of all weights."""
    weights = [weight for part in (pipe.denoiser, pipe.vae, pipe.text) for weight in part.parameters()]
    return sum({weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}.values())


@pytest.fixture(params=[2**40, 2**14, 0], ids=["large blocks", "blocks", "layers"])
def _block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_offload, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_block_bytes")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
def test_plain_modules_with_offload_give_identical_bits(
    folder: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    plain, offloaded = (
        LatentDiffusionPipeline.from_pretrained(
            request.getfixturevalue(folder), device="cpu", dtype=dtype, optimize="off", low_memory=low_memory
        )
        for low_memory in (False, True)
    )
    assert held(offloaded) < held(plain) / 50
    assert torch.equal(latents_of(plain), latents_of(offloaded))
    assert np.array_equal(pixels_of(plain), pixels_of(offloaded))
    assert held(offloaded) < held(plain) / 50


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1), ("bfloat16", 24)])
def test_native_layers_differ_from_plain_ones_by_the_usual_tolerance(model_folder: Path, dtype: str, most: int) -> None:
    plain, offloaded = (
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype=dtype, **options)
        for options in ({"optimize": "off"}, {"low_memory": True})
    )
    assert np.abs(pixels_of(plain) - pixels_of(offloaded)).max() <= most


@pytest.mark.usefixtures("_block_bytes")
def test_every_weight_belongs_to_exactly_one_block(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", low_memory=True)
    for model in (pipe.denoiser, pipe.vae, *pipe.text.encoders):
        assert isinstance(model, nn.Module)
        offloaded = [weight for _, block in disk_offload._blocks(model) for weight in block.parameters()]
        assert len(offloaded) == len({id(weight) for weight in offloaded}) == len(list(model.parameters()))


def test_threads_do_not_take_each_others_mapped_weights(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32", low_memory=True)
    expected = [latents_of(pipe, seed) for seed in range(4)]
    found: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        found[seed] = latents_of(pipe, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        torch.testing.assert_close(found[seed], expected[seed], rtol=1e-5, atol=1e-6)


def test_weights_are_unmapped_when_a_block_fails(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32", low_memory=True)
    before = held(pipe)
    with pytest.raises(RuntimeError):
        pipe.denoiser.mid_block(torch.zeros(1, 3, 4, 4), torch.zeros(1, 64), Conditioning(torch.zeros(1, 2, 32)))
    assert held(pipe) == before
    assert torch.isfinite(latents_of(pipe)).all()


def test_disk_offload_requires_the_cpu(model_folder: Path) -> None:
    with pytest.raises(InputError, match="low_memory=True runs on the CPU, not on device='meta'; try device='cpu'"):
        LatentDiffusionPipeline.from_pretrained(model_folder, device="meta", low_memory=True)
    assert LatentDiffusionPipeline.from_pretrained(model_folder, low_memory=True).device == torch.device("cpu")


def test_changing_or_saving_offloaded_weights_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", low_memory=True)
    for call in (pipe.load_lora, pipe.load_textual_inversion, pipe.save_pretrained):
        with pytest.raises(
            InputError, match=r"low_memory=True keeps the weights in .*; open the model without it"
        ) as caught:
            call(tmp_path / "x")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
