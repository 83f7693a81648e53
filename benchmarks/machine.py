"""On what, and with what, something was measured."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
