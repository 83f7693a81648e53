"""Optimisers, and the learning rate at each step."""

import math
from typing import Any

import torch
from torch import nn

from latentdiff.config.train import OptimConfig
from latentdiff.errors import InputError
from latentdiff.training.muon import Muon, muon_groups


def make_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser `optim.name`. Raises InputError if its package is missing or does not support this machine."""
    groups = _groups(module, optim.weight_decay)
    match optim.name:
        case "muon":
            return Muon(muon_groups(module, optim.weight_decay), optim.learning_rate, optim.betas)
        case "adamw_8bit":
            return _adamw_8bit()(groups, optim.learning_rate, optim.betas)
        case "prodigy":
            return _prodigy()(groups, optim.learning_rate, optim.betas, safeguard_warmup=True, use_bias_correction=True)
    return torch.optim.AdamW(groups, optim.learning_rate, optim.betas, fused=True)


def learning_rate(step: int, optim: OptimConfig) -> float:
    """The learning rate at an optimiser step: linear warm-up, then `lr_schedule` to `final_learning_rate`."""
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    done = min(1.0, (step - optim.warmup_steps) / max(1, optim.max_steps - optim.warmup_steps))
    height = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[optim.lr_schedule]
    return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * height


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay for matrices and kernels only, not for gains and biases."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _adamw_8bit() -> Any:
    """AdamW with 8-bit states (Dettmers et al. 2022)."""
    if not torch.cuda.is_available():
        raise InputError("optim.name=adamw_8bit needs a CUDA device; use adamw instead")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError("optim.name=adamw_8bit needs bitsandbytes; pip install bitsandbytes, or use adamw") from error
    return AdamW8bit


def _prodigy() -> Any:
    """Prodigy (Mishchenko & Defazio 2024), which estimates the learning rate; `learning_rate` is a factor of it."""
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise InputError("optim.name=prodigy needs prodigyopt; pip install prodigyopt, or use adamw") from error
    return Prodigy
