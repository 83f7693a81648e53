"""`latentdiff env`: print the machine, versions and layers in use, for bug reports."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import latentdiff
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.runtime.cpu_features import capabilities
from latentdiff.runtime.device import pick_device, pick_dtype
from latentdiff.runtime.native import cache_folder, forget_failures, kernel_variant, problems, variants, why_none

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pillow", "numpy")


def run(model: str | None, how: dict[str, Any]) -> None:
    """Print the environment and the layers of `model`. how: arguments of `from_pretrained`. Kernels that could not be
    compiled earlier are compiled again.

    Raises CheckpointError for a model that cannot be opened.
    """
    forget_failures()
    for line in environment():
        print(line)
    for line in LatentDiffusionPipeline.from_pretrained(model, **how).runtime_report():
        print(line)


def environment() -> Iterator[str]:
    device = pick_device("auto")
    yield f"latentdiff {latentdiff.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield f"processor: {platform.machine()} with {', '.join(sorted(capabilities())) or 'unknown capabilities'}"
    yield f"kernels: {kernel_variant() or f'none ({why_none()}), PyTorch computes everything'}"
    for name, missing in variants().items():
        lacks = f"this processor lacks {', '.join(missing)}" if missing else None
        yield f"  {name}: {lacks or problems().get(name, 'runs here')}"
    yield f"device auto: {device}, dtype auto: {pick_dtype('auto', device)}"
    yield f"threads: {torch.get_num_threads()} of {os.cpu_count()}"
    yield f"cache folders: {cache_folder()}, {_hub_cache()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)
