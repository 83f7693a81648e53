"""The hardware and the software versions of a measurement."""

import argparse
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from latentdiff import __version__
from latentdiff.errors import InputError
from latentdiff.runtime.cpu_features import CPUINFO, cpu_has
from latentdiff.runtime.device import pick_device
from latentdiff.runtime.native import SWITCH, kernel_variant

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "openvino", "onnxruntime")


def device_option(name: str) -> str:
    """`type=` of an argparse option that names a device, `auto` included."""
    try:
        return str(pick_device(name))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor with the kernel variant in use: zen5-avx512_bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}-{kernel_variant() or 'no kernels'}"


def limits() -> list[str]:
    """The environment variables that limit the instructions in use, as a shell sets them."""
    return [f"{name}={os.environ[name]}" for name in (SWITCH, "ONEDNN_MAX_CPU_ISA") if name in os.environ]


def _processor() -> str:
    """The microarchitecture, from family and model, since names in virtual machines omit it; else the name."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    amd = {"23": "zen2", "25": "zen4" if cpu_has("avx512_f") else "zen3", "26": "zen5"}
    intel = {"85": "cascadelake" if cpu_has("avx512_vnni") else "skylake", "106": "icelake", "143": "sapphirerapids"}
    intel |= {"207": "emeraldrapids", "173": "graniterapids"}
    found = {"AuthenticAMD": amd.get(facts.get("cpu family", "")), "GenuineIntel": intel.get(facts.get("model", ""))}
    name = found.get(facts.get("vendor_id", "")) or facts.get("model name") or platform.processor()
    return re.sub(r"\((R|TM)\)| CPU| Processor", "", name) or platform.machine()


def versions() -> str:
    found = [f"{name} {_version(name)}" for name in PACKAGES if _version(name)]
    return ", ".join([f"latentdiff {__version__}", *found])


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are available now, of the GPU or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
