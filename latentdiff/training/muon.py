"""Muon (Jordan et al. 2024): orthogonalised momentum for matrices, AdamW for all other weights."""

import math
from collections.abc import Callable, Iterable
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
            if not parameters:
                continue
            updates = (self._orthogonal if group["orthogonal"] else self._adam)(parameters, group)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        return loss

    def _orthogonal(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Orthogonalise matrices of one shape in one batch, which is faster than one by one."""
        moments = dict(zip(parameters, self._nesterov(parameters, group["momentum"]), strict=True))
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            shapes.setdefault(p.shape, []).append(p)
        updates: dict[Tensor, Tensor] = {}
        for alike in shapes.values():
            # The order of a kernel's columns does not matter: that of its memory layout (channels last) needs no copy.
            stack = torch.stack([moments[p].movedim(1, -1).bfloat16() for p in alike])
            scale = ADAM_RMS * math.sqrt(max(stack[0].flatten(1).shape))
            orthogonal = orthogonalize(stack.flatten(2)).view_as(stack).movedim(-1, 2)
            updates |= {p: update.to(p.dtype) * scale for p, update in zip(alike, orthogonal, strict=True)}
        return [updates[p] for p in parameters]

    def _nesterov(self, parameters: list[Tensor], momentum: float) -> list[Tensor]:
        moments = [self._state(p, momentum=p)["momentum"] for p in parameters]
        torch._foreach_lerp_(moments, gradients(parameters), 1 - momentum)
        return list(torch._foreach_lerp(gradients(parameters), moments, momentum))

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """AdamW's updates of all parameters at once: otherwise a GPU waits for the launches of small kernels."""
        states = [self._state(p, step=torch.zeros(()), exp_avg=p, exp_avg_sq=p) for p in parameters]
        steps = [state["step"].add_(1).item() for state in states]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        grads = gradients(parameters)
        first, second = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - second)
        roots = torch._foreach_sqrt(torch._foreach_div(squares, [1 - second**step for step in steps]))
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(torch._foreach_div(means, [1 - first**step for step in steps]), roots))

    def _state(self, p: Tensor, **shapes: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, initially zeros like `shapes`."""
        state = self.state[p]
        if not state:
            state |= {name: torch.zeros_like(shape) for name, shape in shapes.items()}
        return state


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


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
