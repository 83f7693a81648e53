"""Muon: orthogonalised updates for matrices, and AdamW for other parameters."""

import pytest
import torch
from torch import nn

from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.training.muon import Muon, muon_groups, orthogonalize
from tests.small import small_unet_config


@pytest.mark.parametrize("shape", [(32, 32), (16, 200), (200, 16)])
def test_singular_values_become_nearly_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    found = orthogonalize(matrix).float()
    assert found.shape == matrix.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3 and values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert nn.functional.cosine_similarity(found.flatten(), (u @ vh).flatten(), dim=0) > 0.95


def test_vectors_are_updated_as_by_adamw() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    group = {"params": [ours], "orthogonal": False, "weight_decay": 0.1}
    first = Muon([group], lr=0.01, betas=(0.9, 0.99))
    second = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_hidden_kernels_are_orthogonal_and_all_parameters_belong_somewhere() -> None:
    unet = UNet2DConditionModel(small_unet_config())
    hidden, outer, vectors = muon_groups(unet, 0.01)
    ids = [id(p) for group in (hidden, outer, vectors) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in unet.parameters())
    assert any(p is unet.mid_block.resnets[0].conv1.weight for p in hidden["params"])
    assert any(p is unet.conv_in.weight for p in outer["params"])
    assert all(p.ndim == 1 for p in vectors["params"]) and vectors["weight_decay"] == 0


def test_the_size_of_a_kernels_update_does_not_depend_on_its_gradient() -> None:
    steps = []
    for scale in (1e-4, 1e3):
        torch.manual_seed(0)
        kernel = nn.Parameter(torch.zeros(8, 4, 3, 3))
        optimizer = Muon([{"params": [kernel], "orthogonal": True}], lr=1.0, betas=(0.9, 0.99))
        kernel.grad = scale * torch.randn(8, 4, 3, 3)
        optimizer.step()
        steps.append(kernel.detach().square().mean().sqrt().item())
    assert steps[0] == pytest.approx(steps[1], rel=1e-2)
    assert steps[0] == pytest.approx(0.2, rel=0.3)
