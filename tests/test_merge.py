"""Merged tokens: what the paper's formula says, exact where nothing is lost, the same for a picture alone."""

import copy
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.inference import prepare, restore
from latentdiff.runtime.merge import MergedSelfAttention, _windows, match, merge, merge_tokens, spread
from tests.test_inference import answer, error, small_unet

SIZES = [(4, 6), (5, 3), (1, 4), (3, 1), (1, 1)]


def windows(height: int, width: int) -> tuple[list[int], list[int]]:
    to, others = _windows(height * width, width, torch.device("cpu"))
    return to.tolist(), others.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_each_window_has_one_destination(size: tuple[int, int]) -> None:
    to, others = windows(*size)
    assert sorted(to + others) == list(range(size[0] * size[1]))
    found = [(token // size[1] // 2, token % size[1] // 2) for token in to]
    assert sorted(found) == [(i, j) for i in range((size[0] + 1) // 2) for j in range((size[1] + 1) // 2)]


def by_hand(x: Tensor, height: int, width: int, ratio: float) -> tuple[Tensor, int]:
    """Each token of x [N, C] as the mean of those that it is merged with, and how many means there are."""
    to, others = windows(height, width)
    nearest = {}
    for token in others:
        cosines = [float(x[token] @ x[other] / (x[token].norm() * x[other].norm())) for other in to]
        nearest[token] = max(zip(cosines, to, strict=True))
    groups = {token: [token] for token in range(len(x))}
    for token in sorted(others, key=lambda token: nearest[token], reverse=True)[: int(ratio * len(x))]:
        groups[nearest[token][1]] += groups.pop(token)
    means = torch.empty_like(x)
    for members in groups.values():
        means[members] = x[members].mean(0)
    return means, len(groups)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", SIZES)
def test_the_most_alike_are_merged_as_loops_in_float64_say(size: tuple[int, int], ratio: float) -> None:
    x = torch.randn(3, size[0] * size[1], 8, dtype=torch.float64)
    places, left = match(x, size[1], ratio)
    found = spread(merge(x, places, left), places)
    for picture, means in zip(x, found, strict=True):
        wanted, count = by_hand(picture, *size, ratio)
        assert count == left and torch.allclose(means, wanted, rtol=1e-12, atol=1e-12)
    assert all(set(row) == set(range(left)) for row in places.tolist())


def merging(unet: UNet2DConditionModel) -> list[str]:
    return [name for name, layer in unet.named_modules() if isinstance(layer, MergedSelfAttention)]


def merged(plain: UNet2DConditionModel) -> UNet2DConditionModel:
    changed = copy.deepcopy(plain)
    prepare(changed)
    merge_tokens(changed)
    return changed


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (10, 12)])
def test_nothing_to_merge_changes_only_the_order_of_sums(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_unet("sd2").double()
    monkeypatch.setattr(MergedSelfAttention, "ratio", 0.0)
    assert error(answer(merged(plain), size), answer(plain, size)) < 1e-12


@torch.no_grad()
def test_windows_of_one_value_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = small_unet("one layer a block").double()
    changed = merged(plain).down_blocks[1].attentions[0]
    x = torch.randn(2, 32, 3, 5, dtype=torch.float64).repeat_interleave(2, -1).repeat_interleave(2, -2)
    text = torch.randn(2, 5, 24, dtype=torch.float64)
    wanted = plain.down_blocks[1].attentions[0](x, text)
    assert error(changed(x, text), wanted) > 1e-3  # half of the tokens: some windows count for more than others
    monkeypatch.setattr(MergedSelfAttention, "ratio", 0.75)
    assert error(changed(x, text), wanted) < 1e-12


@torch.no_grad()
def test_only_the_largest_maps_with_attention_are_merged() -> None:
    sd, xl, small = (merging(merged(small_unet(name))) for name in ("sd1", "xl", "one layer a block"))
    assert len(sd) == 5 and all(name.startswith(("down_blocks.0.", "up_blocks.3.")) for name in sd)
    assert len(xl) == 10 and all(name.startswith(("down_blocks.1.", "up_blocks.1.")) for name in xl)
    assert len(small) == 3 and all(name.startswith(("down_blocks.1.", "up_blocks.0.")) for name in small)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unet_is_near_and_restored_to_the_bit(dtype: torch.dtype) -> None:
    plain = small_unet("sd2").to(dtype)
    changed, exact = merged(plain), copy.deepcopy(plain)
    prepare(exact)
    assert 1e-4 < error(answer(changed), answer(exact).double()) < 0.1
    restore(changed)
    state, back = plain.state_dict(), changed.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    kinds, before = ({name: type(m) for name, m in unet.named_modules()} for unet in (changed, plain))
    assert kinds == before


@torch.no_grad()
def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    changed = merged(small_unet("sd2"))
    sample, text = torch.randn(3, 4, 8, 6), torch.randn(3, 5, 24)
    together = changed(sample, torch.tensor([500]), text)
    alone = changed(sample[:1], torch.tensor([500]), text[:1])
    sample[1:], text[1:] = torch.randn(2, 4, 8, 6), torch.randn(2, 5, 24)
    assert torch.equal(changed(sample, torch.tensor([500]), text)[0], together[0])
    assert error(alone[0], together[0].double()) < 1e-5


@torch.no_grad()
def test_a_thread_with_maps_of_another_width_disturbs_nobody() -> None:
    changed = merged(small_unet("sd2"))
    wanted, others = answer(changed, (8, 16)), []

    def meanwhile(*_: object) -> None:
        hook.remove()
        thread = Thread(target=lambda: others.append(torch.no_grad()(answer)(changed, (16, 8))))
        thread.start()
        thread.join()

    hook = changed.get_submodule(merging(changed)[0]).register_forward_pre_hook(meanwhile)
    assert torch.equal(answer(changed, (8, 16)), wanted) and torch.equal(answer(changed, (16, 8)), others[0])


def test_a_pipeline_merges_again_after_its_weights_were_changed(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32", approximate=["merge"])
    exact = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    first, wanted = (
        one("a cat face", num_inference_steps=2, height=24, seed=1, output_type="latent").images
        for one in (pipe, exact)
    )
    assert 0 < error(first, wanted.double()) < 0.3
    with pipe._plain() as parts:
        assert not merging(parts.unet)
    assert merging(pipe.unet)
    again: Tensor = pipe("a cat face", num_inference_steps=2, height=24, seed=1, output_type="latent").images
    assert torch.equal(again, first)


def test_it_wants_prepared_layers(model_folder: Path) -> None:
    with pytest.raises(InputError, match=r"\['merge'\] needs optimize='auto'"):
        LatentDiffusionPipeline.from_pretrained(model_folder, optimize="off", approximate=["merge"])
    with pytest.raises(InputError, match=r"\['merge'\] does not go with low_memory=True"):
        LatentDiffusionPipeline.from_pretrained(model_folder, low_memory=True, approximate=["merge"])
