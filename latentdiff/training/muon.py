"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal; AdamW for everything that is no matrix."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """One optimiser for a network: orthogonal updates for hidden kernels and matrices, AdamW for the rest.

    A kernel [O, I, k, k] counts as a matrix [O, I*k*k]. Updates are scaled to AdamW's usual size (Liu et al. 2025,
    eq. 4), so that both take the same learning rate. Groups hold `orthogonal`; see `muon_groups`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95):
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": 0.0, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._orthogonal if group["orthogonal"] else self._adam
                    p.sub_(update(p, p.grad, group), alpha=group["lr"])
        return loss

    def _orthogonal(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(grad, 1 - group["momentum"])
        nesterov = torch.lerp(grad, state["momentum"], group["momentum"])
        matrix = nesterov.flatten(1)
        return orthogonalize(matrix).view(p.shape) * (ADAM_RMS * math.sqrt(max(matrix.shape)))

    def _adam(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        first, second = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - first)
        state["exp_avg_sq"].lerp_(grad.square(), 1 - second)
        step = state["step"].item()
        mean, square = state["exp_avg"] / (1 - first**step), state["exp_avg_sq"] / (1 - second**step)
        return mean / (square.sqrt() + group["eps"])


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of the matrix's U S V^T, by quintic Newton-Schulz steps in bfloat16: singular values 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


def muon_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Hidden matrices and kernels; first and last layers, embeddings and vectors go to AdamW."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    outer = ("conv_in", "conv_out", "embedding", "lora_")
    hidden = [p for name, p in named if p.ndim > 1 and not any(word in name for word in outer)]
    others = [p for name, p in named if p.ndim > 1 and any(word in name for word in outer)]
    vectors = [p for _, p in named if p.ndim <= 1]
    return [
        {"params": hidden, "weight_decay": weight_decay, "orthogonal": True},
        {"params": others, "weight_decay": weight_decay, "orthogonal": False},
        {"params": vectors, "weight_decay": 0.0, "orthogonal": False},
    ]
