"""Asynchronous copies from the CPU to a device."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the CPU; to CUDA from pinned memory, since a copy from other memory waits for the device."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # pin_memory returns pinned tensors as they are
