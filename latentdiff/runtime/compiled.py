"""`optimize="compile"`: networks as torch.compile makes them, and the way back to those of "auto" where it cannot."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.runtime.compile_cache import open_cache

ONE_AT_A_TIME = Lock()  # threads that compile, give up, or replay a CUDA graph
SHAPES = 64  # sizes of a batch or picture that may each have a graph; torch's own limit is 8


def compile_model(model: nn.Module, otherwise: Callable[[nn.Module], None]) -> None:
    """Let `model` be compiled at its first call for each size of input, until `restore`; in place.

    Weights stay inputs of the graph: what is loaded into them later counts, and the graph fits into a cache on the
    disk, which frozen ones do not. On CUDA the fastest kernels are searched for, and recorded as a CUDA graph.
    otherwise: what makes the model ready where torch.compile fails.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.forward = Compiled(model, next(model.parameters()).device, otherwise)


class Compiled:
    """Called in place of a module's `forward`, with its arguments."""

    def __init__(self, module: nn.Module, device: torch.device, otherwise: Callable[[nn.Module], None]) -> None:
        self.module, self.device, self.otherwise = module, device, otherwise
        self.recorded = device.type == "cuda"
        mode = "max-autotune" if self.recorded else None
        self.run: Any = torch.compile(module.forward, fullgraph=True, dynamic=False, mode=mode)
        self.sizes: set[torch.Size] = set()
        self.given_up = False

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        from torch._dynamo import config, exc

        known = x.shape in self.sizes
        free = known and not self.recorded  # a recorded graph has one place for what goes in and what comes out
        try:
            with nullcontext() if free else ONE_AT_A_TIME, config.patch(recompile_limit=SHAPES):
                if not self.given_up:
                    return self._call(x, *others) if known else self._first(x, *others)
        except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
            self._give_up(error)
        return self.module(x, *others)

    def _first(self, x: Tensor, *others: Any) -> Tensor:
        from torch._inductor import config

        cache = open_cache(self.device)
        with config.patch(freezing=False):  # whatever else this process compiles
            out = self._call(x, *others)
        self.sizes.add(x.shape)
        if cache:
            cache.save()
        return out

    def _call(self, *inputs: Any) -> Tensor:
        if not self.recorded:
            return self.run(*inputs)
        torch.compiler.cudagraph_mark_step_begin()
        return self.run(*inputs).clone()  # the next replay writes into the memory of this answer

    def _give_up(self, error: Exception) -> None:
        with ONE_AT_A_TIME:
            if self.given_up:
                return
            reason = " ".join(str(getattr(error, "inner_exception", error)).split())[:200]
            warnings.warn(f"torch.compile failed ({reason}); going on with optimize='auto'", stacklevel=3)
            self.otherwise(self.module)
            if vars(self.module).get("forward") is self:  # until here, who calls waits for the lock
                del self.module.forward
            self.given_up = True
