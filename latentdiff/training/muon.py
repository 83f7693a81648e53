"""Muon (Jordan et al. 2024): orthogonalised momentum for matrices, AdamW for all other weights."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Orthogonalised updates for hidden kernels and matrices, and AdamW for the other parameters.

    A kernel [O, I, k, k] is treated as a matrix [O, I*k*k]. Updates are scaled to the usual size of AdamW's (Liu et al.
    2025, eq. 4), so that both use the same learning rate. Parameter groups have a key `orthogonal`; see `muon_groups`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95):
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": 0.0, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = self._orthogonal if group["orthogonal"] else self._adam
            for p, update in updates(parameters, group):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        return loss

    def _orthogonal(self, parameters: list[Tensor], group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Orthogonalise matrices of one shape in one batch, which is faster than one by one."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            shapes.setdefault(p.shape, []).append(p)
        for alike in shapes.values():
            moments = [self._nesterov(p, group["momentum"]) for p in alike]
            # The order of a kernel's columns does not matter: that of its memory layout (channels last) needs no copy.
            stack = torch.stack([m.movedim(1, -1).bfloat16() for m in moments])
            scale = ADAM_RMS * math.sqrt(max(stack[0].flatten(1).shape))
            updates = orthogonalize(stack.flatten(2)).view_as(stack).movedim(-1, 2)
            for p, update in zip(alike, updates, strict=True):
                yield p, update.to(p.dtype) * scale

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        assert p.grad is not None
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return torch.lerp(p.grad, state["momentum"], momentum)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for p in parameters:
            assert p.grad is not None
            yield p, self._adam_update(p, p.grad, group)

    def _adam_update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
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


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix U S V^T by quintic Newton-Schulz steps; singular values become 0.7 to 1.2.

    matrices: [..., rows, columns]. Returns bfloat16.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = b * gram + c * gram @ gram
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        x = polynomial @ x
    return x.mT if tall else x


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
