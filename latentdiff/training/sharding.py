"""Sharding a model over processes if `accelerate launch` requests it: FSDP 2, or DeepSpeed's ZeRO 1 and 2.

A copy of the task's module is trained. The module itself stays complete, to evaluate and save the averaged weights.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from latentdiff.config.train import TrainConfig
from latentdiff.errors import InputError
from latentdiff.training.ema import EMA
from latentdiff.training.processes import on_many_cpus, process_state

WEIGHTS = {"FSDP": "pytorch_model_fsdp_0", "DEEPSPEED": "pytorch_model"}  # as accelerate names them in a checkpoint
BLOCKS = {"BasicTransformerBlock", "CLIPEncoderLayer", "ResnetBlock2D"}


def sharding_plugin(module: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """The argument that makes `Accelerator` shard `module`; empty if sharding was not requested.

    Raises InputError for unsupported cases: optimisers other than AdamW, FSDP 1, FSDP with scalar weights, ZeRO 3,
    DeepSpeed on CPUs.
    """
    requested = [name for name in WEIGHTS if os.environ.get(f"ACCELERATE_USE_{name}") == "true"]
    if not requested or process_state().num_processes == 1:
        return {}
    if config.optim.name != "adamw":
        raise InputError(
            f"optim.name={config.optim.name} cannot be sharded; use adamw, or launch without {requested[0]}"
        )
    if requested == ["FSDP"]:
        return {"fsdp_plugin": _fsdp(module)}
    return {"deepspeed_plugin": _deepspeed(config)}


def _fsdp(module: nn.Module) -> FullyShardedDataParallelPlugin:
    """Shard block by block. Weights and gradients stay float32; autocast selects the precision."""
    if os.environ.get("FSDP_VERSION") != "2":
        raise InputError("FSDP 1 is not supported; set fsdp_version: 2, as configs/accelerate/fsdp.yaml does")
    if scalars := [name for name, p in module.named_parameters() if p.requires_grad and p.ndim == 0]:
        raise InputError(f"FSDP cannot shard {scalars[0]}, a scalar; launch with configs/accelerate/ddp.yaml")
    # accelerate shards only on GPUs, and only in the first run of a process; gloo supports it too.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trained = [child for child in module.children() if _trains(child)]
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted(BLOCKS & {type(m).__name__ for child in trained for m in child.modules()}),
        ignored_modules=[child for child in module.children() if not _trains(child)],
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )


def _deepspeed(config: TrainConfig) -> DeepSpeedPlugin:
    """Weights stay float32, and DeepSpeed's own autocast is used. The run's config overrides the launch file."""
    if on_many_cpus():
        raise InputError("accelerate supports DeepSpeed only on GPUs; launch with configs/accelerate/fsdp.yaml")
    stage, precision = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")), config.run.mixed_precision
    if stage == 3:
        raise InputError("DeepSpeed's ZeRO 3 is not supported; set zero_stage: 2, or launch with FSDP")
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.data.batch_size,
        "gradient_accumulation_steps": config.run.gradient_accumulation_steps,
        "gradient_clipping": config.optim.max_grad_norm,
        "zero_optimization": {"stage": stage},
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
    }
    if precision != "no":
        settings["torch_autocast"] = {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[precision]}
    return DeepSpeedPlugin(hf_ds_config=settings)


def copy_to_shard(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `module` with its own trainable weights; frozen ones are shared and moved to `device`."""
    frozen = [child.to(device) for child in module.children() if not _trains(child)]
    plain = [value for value in vars(module).values() if not isinstance(value, dict)]
    return copy.deepcopy(module, {id(value): value for value in (*frozen, *plain)})


def refuse_another_layout(checkpoint: Path, plugin: dict[str, Any]) -> None:
    """Raise InputError for a checkpoint whose sharding differs from the run's."""
    saved = [name for name, folder in WEIGHTS.items() if (checkpoint / folder).is_dir()]
    if saved != [name for name in WEIGHTS if f"{name.lower()}_plugin" in plugin]:
        how = f"with {saved[0]}" if saved else "without sharding"
        raise InputError(f"{checkpoint} was saved {how}; launch the run as before, or use another run.output")


class ShardedEMA(EMA):
    """The average of sharded weights; `complete` is the module that receives it. The file format is that of `EMA`."""

    def __init__(self, sharded: nn.Module, complete: nn.Module, decay: float) -> None:
        super().__init__(sharded, decay)
        self.children = [child for child in complete.children() if _trains(child)]
        self.shown = [p for p in complete.parameters() if p.requires_grad]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager in which the complete module has the averaged weights and is on the shards' device."""
        self._move(self.average[0].device)
        with torch.no_grad():
            for p, average in zip(self.shown, self.average, strict=True):
                p.copy_(_gathered(average))
        try:
            yield
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for child in self.children:
            child.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Collective call for all processes; the main one returns the tensors to write."""
        main = process_state().is_main_process
        complete = (_gathered(average) for average in self.average)
        return {"updates": self.updates, "average": [tensor.cpu() for tensor in complete if main]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        shares = [_share(saved, mine) for saved, mine in zip(state["average"], self.average, strict=True)]
        super().load_state_dict(state | {"average": shares})


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share(complete: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return complete
    return distribute_tensor(complete.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
