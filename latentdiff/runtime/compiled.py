"""`optimize="compile"`: networks compiled by torch.compile, with a fallback to `"auto"` if compilation fails."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.runtime.compile_cache import open_cache

ONE_AT_A_TIME = Lock()  # held while compiling, falling back, or replaying a CUDA graph
SHAPES = 64  # sizes of a batch or picture that may each have a graph; torch's own limit is 8


def compile_model(model: nn.Module, otherwise: Callable[[nn.Module], None]) -> None:
    """Compile `model` at its first call for each input size, until `restore`; in place.

    Weights stay inputs of the graph, so that weights loaded later are used and the graph can be cached on disk. On CUDA
    kernels are autotuned and recorded as a CUDA graph. otherwise: prepares the model if torch.compile fails.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.forward = Compiled(model, next(model.parameters()).device, otherwise)


class Compiled:
    """Replaces a module's `forward`, with the same arguments."""

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
        free = known and not self.recorded  # a recorded graph has one buffer for inputs and outputs
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
        with config.patch(freezing=False):  # even if the process has set it for other models
            out = self._call(x, *others)
        self.sizes.add(x.shape)
        if cache:
            cache.save()
        return out

    def _call(self, *inputs: Any) -> Tensor:
        if not self.recorded:
            return self.run(*inputs)
        torch.compiler.cudagraph_mark_step_begin()
        return self.run(*inputs).clone()  # the next replay overwrites this output

    def _give_up(self, error: Exception) -> None:
        with ONE_AT_A_TIME:
            if self.given_up:
                return
            reason = " ".join(str(getattr(error, "inner_exception", error)).split())[:200]
            warnings.warn(f"torch.compile failed ({reason}); continuing with optimize='auto'", stacklevel=3)
            self.otherwise(self.module)
            if vars(self.module).get("forward") is self:  # callers wait for the lock until here
                del self.module.forward
            self.given_up = True
