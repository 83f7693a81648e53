"""Load frozen networks in the precision of the run, which halves their memory and avoids casts in each step."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from latentdiff.checkpoints.components import fill
from latentdiff.checkpoints.tensor_locations import TensorLocation, read_tensors
from latentdiff.models.unet import UNet2DConditionModel

COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """torch.autocast for `run.mixed_precision`."""
    return torch.autocast(device.type, COMPUTE[precision], enabled=precision != "no")


def fill_frozen(model: nn.Module, locations: dict[str, TensorLocation], _: torch.dtype, precision: str) -> None:
    """As `fill`, but with a U-Net's matrices and kernels in the compute precision.

    Norms, biases and embeddings stay float32, as under autocast; they are a thousandth of the weights.
    """
    if not isinstance(model, UNet2DConditionModel):
        fill(model, locations, torch.float32)
        return
    halved = _matrices(model)
    state: dict[str, Tensor] = {}
    for names, dtype in ((locations.keys() & halved, COMPUTE[precision]), (locations.keys() - halved, torch.float32)):
        chosen = [name for name in locations if name in names]
        state |= dict(zip(chosen, read_tensors([locations[name] for name in chosen], dtype), strict=True))
    model.load_state_dict(state, assign=True)


def cast_trained(model: nn.Module) -> None:
    """Convert trainable weights to float32."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def _matrices(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
