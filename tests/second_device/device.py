"""The second device as `torch.device("other")`: compiled and registered for the whole process."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.cpp_extension import include_paths

NAME = "other"
SOURCE = Path(__file__).with_name("device.cpp")


class Device(ModuleType):
    """The functions of `torch.other`, like those of `torch.cuda`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(f"torch.{NAME}")
        self.library = library

    def host_copies(self) -> int:
        """Copies to the host so far, and other operations that would wait for the device."""
        return int(self.library.second_device_host_copies())

    def refuse_float64(self, refuse: bool = True) -> None:
        self.library.second_device_refuse_float64(ctypes.c_bool(refuse))

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    manual_seed = manual_seed_all

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False


def build(folder: Path, source: Path = SOURCE) -> Path:
    """Compile the backend, or another source, into `folder`."""
    library = folder / f"lib{source.stem}.so"
    libraries = Path(torch.__file__).parent / "lib"
    command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    command += [f"-I{path}" for path in include_paths()]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def register(library: Path) -> Device:
    """Make `torch.device("other")` usable in this process."""
    module = Device(ctypes.CDLL(str(library)))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, module)
    sys.modules[f"torch.{NAME}"] = module
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return module
