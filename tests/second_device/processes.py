"""Training on second devices of several processes: `torchrun -m tests.second_device.processes LIBRARY CONFIG.json`.

Gradients are exchanged through the host, by gloo; otherwise DDP works as with GPUs.
"""

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future

from tests.second_device.device import NAME, register

BACKEND = "through_the_host"


class ThroughTheHost(dist.ProcessGroup):
    """The collectives that DDP and accelerate call, on copies in host memory."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> dist.Work:
        copies = [tensor.cpu() for tensor in tensors]
        self.gloo.allreduce(copies, options or dist.AllreduceOptions()).wait()
        return _written(tensors, copies)

    def broadcast(self, tensors: list[Tensor], options: Any = None) -> dist.Work:
        copies = [tensor.cpu() for tensor in tensors]
        self.gloo.broadcast(copies, options).wait()
        return _written(tensors, copies)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any = None) -> dist.Work:
        copies = [[torch.empty_like(tensor, device="cpu") for tensor in row] for row in outputs]
        self.gloo.allgather(copies, [tensor.cpu() for tensor in inputs]).wait()
        return _written([tensor for row in outputs for tensor in row], [copy for row in copies for copy in row])

    def barrier(self, opts: Any = None) -> dist.Work:
        self.gloo.barrier().wait()
        return _written([], [])

    def size(self) -> int:
        return self.gloo.size()

    def getBackendName(self) -> str:  # noqa: N802, torch's name
        return BACKEND


def _written(tensors: list[Tensor], copies: list[Tensor]) -> dist.Work:
    for tensor, copy in zip(tensors, copies, strict=True):
        tensor.copy_(copy)
    done: Future[list[Tensor]] = Future()
    done.set_result(tensors)
    return _create_work_from_future(done)


def main(library: str, config: str) -> None:
    register(Path(library))
    os.environ |= {"ACCELERATE_TORCH_DEVICE": NAME, "ACCELERATE_BYPASS_DEVICE_MAP": "true"}
    warnings.simplefilter("ignore")
    dist.Backend.register_backend(BACKEND, ThroughTheHost, devices=["cpu", NAME])
    # accelerate knows the backends of real devices only; this is how it starts DDP on GPUs.
    PartialState._prepare_backend = lambda *_: (BACKEND, DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    from latentdiff.config.train import train_config
    from latentdiff.training.processes import process_state
    from latentdiff.training.train import train

    train(train_config.validate_python(json.loads(Path(config).read_text())))
    state = process_state()
    assert (state.num_processes, state.device.type) == (2, NAME)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
