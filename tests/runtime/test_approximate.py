"""Approximations: exact if nothing is skipped, close otherwise, and off by default."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latentdiff import LatentDiffusionPipeline, pipeline
from latentdiff.errors import InputError
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.approximate import KNOWN, check_approximations
from latentdiff.runtime.deepcache import DeepCacheUNet
from latentdiff.sampling.samplers import SAMPLERS
from tests.runtime.test_optimize import error, small_unet


def steps(unet: UNet2DConditionModel, every: int, batches: list[int]) -> tuple[list[float], int]:
    """Errors of a run's outputs against those of the full network, and how often all levels were computed."""
    torch.manual_seed(0)
    runner, calls = DeepCacheUNet(unet, every), 0
    whole: list[int] = []
    sample, text = torch.randn(2, 4, 8, 8), Conditioning(torch.randn(2, 5, 24))
    hook = unet.mid_block.register_forward_hook(lambda *_: whole.append(1))
    errors = []
    for step, batch in enumerate(batches):
        arguments = (sample[:batch] + 0.05 * step, torch.tensor([900 - 20 * step]), text[:batch])
        wanted = unet(*arguments)
        whole.clear()
        errors.append(error(runner(*arguments), wanted.double()))
        calls += len(whole)
    hook.remove()
    return errors, calls


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_deepcache_at_every_step_equals_the_network(name: str) -> None:
    assert steps(small_unet(name), 1, [2] * 4) == ([0.0] * 4, 4)


@torch.no_grad()
def test_deepcache_computes_all_levels_every_other_step_and_approximates_the_others() -> None:
    errors, calls = steps(small_unet("sd2"), 2, [2] * 5)
    assert calls == 3 and errors[::2] == [0.0] * 3
    assert all(0 < e < 0.1 for e in errors[1::2])


@torch.no_grad()
def test_a_batch_of_another_size_reuses_nothing() -> None:
    errors, calls = steps(small_unet("sd2"), 3, [1, 2, 2, 2, 2, 1, 1])
    assert calls == 4 and [e == 0 for e in errors] == [True, True, False, False, True, True, False]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_deepcache_works_with_every_sampler_and_resets_for_each_picture(model_folder: Path, sampler: str) -> None:
    def latents(pipe: LatentDiffusionPipeline) -> Tensor:
        made: Tensor = pipe(
            "a cat face", num_inference_steps=5, seed=1, sampler=sampler, guidance_interval=(0.2, 0.9),
            output_type="latent",
        ).images  # fmt: skip
        return made

    exact, near = (open_model(model_folder, names) for names in ((), ("reuse",)))
    wanted, first = latents(exact), latents(near)
    assert torch.equal(first, latents(near))
    assert 0 < error(first, wanted.double()) < 0.3


def open_model(folder: Path, names: tuple[str, ...]) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32", approximate=names)


def test_threads_do_not_share_cached_features(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DeepCacheUNet] = []
    for_one_run = pipeline.for_one_run
    monkeypatch.setattr(pipeline, "for_one_run", lambda *a: made.append(for_one_run(*a)) or made[-1])  # type: ignore[arg-type, func-returns-value]
    pipe = open_model(model_folder, ("reuse",))
    pictures = [np.asarray(pipe("a cat face", num_inference_steps=3, seed=s).images[0]) for s in (1, 2, 1)]
    assert len({id(run) for run in made}) == 3 and np.array_equal(pictures[0], pictures[2])


def test_a_single_name_may_be_a_string() -> None:
    assert check_approximations("int8") == check_approximations(["int8", "int8"]) == ("int8",)
    assert check_approximations(["int8", "reuse"]) == ("reuse", "int8") and check_approximations([]) == ()
    assert check_approximations(KNOWN[::-1]) == KNOWN == ("reuse", "int8")


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(InputError, match="approximate='reus' is unknown; did you mean 'reuse'"):
        check_approximations(["reus"])
    with pytest.raises(InputError, match="approximate='x' is unknown"):
        LatentDiffusionPipeline.from_pretrained(approximate=["x"])
