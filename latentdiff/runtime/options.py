"""Execution options: optimisation level, approximations and memory offload."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentdiff.errors import InputError, did_you_mean
from latentdiff.models.conditioning import DenoisingNetwork
from latentdiff.models.vae import VAE
from latentdiff.runtime.approximate import approximate as approximate_layers
from latentdiff.runtime.approximate import check_approximations
from latentdiff.runtime.compiled import compile_model
from latentdiff.runtime.deepcache import EVERY
from latentdiff.runtime.device import pick_device
from latentdiff.runtime.optimize import map_weights_separately, prepare

LEVELS = ("auto", "off", "compile")


@dataclass(frozen=True)
class RuntimeOptions:
    """How the networks of a model are executed.

    optimize: one of `LEVELS`. approximate: names of `runtime.approximate`. low_memory: disk offload. every: with
    "reuse", one of this many steps computes all levels.
    """

    optimize: str = "off"
    approximate: tuple[str, ...] = ()
    low_memory: bool = False
    every: int = EVERY

    def prepare_allocator(self, device: torch.device, dtype: torch.dtype) -> None:
        """Configure the allocator for the weights; call it before the networks are read."""
        if self.optimize == "auto" and not self.low_memory:
            map_weights_separately(torch.empty(0, device=device, dtype=dtype))

    def make_ready(self, denoiser: DenoisingNetwork, vae: VAE) -> None:
        """Optimise the networks in place, until `restore`. Raises InputError if this machine does not support the
        options.
        """
        if self.low_memory:
            return
        if self.optimize == "auto":
            prepare(denoiser)
            prepare(vae)
            approximate_layers(denoiser, self.approximate)
        elif self.optimize == "compile":
            compile_model(denoiser, otherwise=prepare)
            compile_model(vae.decoder, otherwise=prepare)

    def device(self, name: str) -> torch.device:
        """`pick_device`; disk offload runs on the CPU only. Raises InputError."""
        if self.low_memory and name.partition(":")[0] not in ("auto", "cpu"):
            raise InputError(f"low_memory=True runs on the CPU, not on device={name!r}; try device='cpu'")
        return pick_device("cpu" if self.low_memory and name == "auto" else name)


def choose_options(optimize: str, approximate: Sequence[str] = (), low_memory: bool = False) -> RuntimeOptions:
    """Check and combine the options. Raises InputError for an unknown name, and for options that exclude each other."""
    if optimize not in LEVELS:
        raise InputError(f"optimize={optimize!r} is unknown; {did_you_mean(optimize, LEVELS)}")
    if optimize == "compile" and low_memory:
        raise InputError("optimize='compile' cannot be combined with low_memory=True; omit one of them")
    names = check_approximations(approximate)
    if names and optimize != "auto":
        raise InputError(f"approximate={list(names)} needs optimize='auto'; omit one of them")
    if names and low_memory:
        raise InputError(f"approximate={list(names)} cannot be combined with low_memory=True; omit one of them")
    return RuntimeOptions(optimize, names, low_memory)
