"""The linear layer of a LoRA in training computes peft's outputs and gradients."""

import copy

import peft.tuners.lora
import pytest
import torch
from torch import Tensor, nn

from latentdiff.runtime import training_lora
from latentdiff.runtime.training_lora import LoraLinear
from latentdiff.training.lora import inject_pairs


class Layers(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.to_q = nn.Linear(12, 20, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_q(x)
        return out


def with_pairs(bias: bool = True, dora: bool = False) -> Layers:
    torch.manual_seed(0)
    model = Layers(bias)
    inject_pairs(model, ["to_q"], 4, dora)
    for p in model.parameters():
        p.data = torch.randn_like(p)
    return model


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_(True)
    model(x).sin().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return found | {"x": x.grad}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12)])
def test_outputs_and_gradients_are_those_of_peft(bias: bool, shape: tuple[int, ...]) -> None:
    fast = with_pairs(bias)
    plain = copy.deepcopy(fast).double()
    assert type(fast.to_q) is LoraLinear
    fast.to_q.scaling["default"] = plain.to_q.scaling["default"] = 0.7
    plain.to_q.__class__ = peft.tuners.lora.Linear
    x = torch.randn(*shape)
    torch.testing.assert_close(fast(x), plain(x.double()).float())
    found, wanted = gradients(fast, x), gradients(plain, x.double())
    assert set(found) == set(wanted) == {"x", "to_q.lora_A.default.weight", "to_q.lora_B.default.weight"}
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name].float(), rtol=2e-5, atol=2e-5)


def test_an_input_without_a_gradient_gets_none() -> None:
    model, x = with_pairs(), torch.randn(3, 12)
    model(x).sum().backward()
    assert x.grad is None and model.to_q.lora_A.default.weight.grad is not None


def test_other_precisions_and_dora_are_computed_by_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_lora, "_LowRankLinear", None)
    model, x = with_pairs(), torch.randn(3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert model.double()(x.double()).dtype == torch.float64
    assert type(with_pairs(dora=True).to_q) is peft.tuners.lora.Linear


def test_switched_off_pairs_are_left_out() -> None:
    model, x = with_pairs(), torch.randn(3, 12)
    layer = model.to_q
    layer.enable_adapters(False)
    assert torch.equal(model(x), layer.get_base_layer()(x))
