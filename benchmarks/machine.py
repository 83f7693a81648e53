"""On what, and with what, something was measured."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from latentdiff import __version__
from latentdiff.errors import InputError
from latentdiff.runtime import pick_device

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "openvino", "onnxruntime")


def device_option(name: str) -> str:
    """`type=` of an argparse option that names a device, `auto` included."""
    try:
        return str(pick_device(name))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def versions() -> str:
    found = [f"{name} {_version(name)}" for name in PACKAGES if _version(name)]
    return ", ".join([f"latentdiff {__version__}", *found])


def free_memory(device: torch.device) -> int:
    """Bytes of the GPU's memory, or of the machine's, that can be had now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
