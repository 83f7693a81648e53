"""Move tensors and networks between devices without synchronising in a training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from latentdiff.device_transfer import send
from latentdiff.models.conditioning import Conditioning

CPU = torch.device("cpu")


def send_conditioning(conditioning: Conditioning, device: torch.device) -> Conditioning:
    """Apply `send` to every tensor of a conditioning."""
    pooled, ids = conditioning.pooled, conditioning.time_ids
    return replace(
        conditioning,
        hidden=send(conditioning.hidden, device),
        pooled=None if pooled is None else send(pooled, device),
        time_ids=None if ids is None else send(ids, device),
    )


@contextmanager
def on_device(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Context manager in which frozen networks are on `device`; afterwards they are on the CPU."""
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to(CPU)
