"""Frozen networks of a run: load them in its precision, move them to a device for a while, and free their memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from latentdiff.checkpoints.components import Fill, fill
from latentdiff.checkpoints.model_source import NetworkFiles
from latentdiff.checkpoints.tensor_locations import TensorLocation, read_tensors
from latentdiff.models.unet import UNet2DConditionModel

COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """torch.autocast for `run.mixed_precision`."""
    return torch.autocast(device.type, COMPUTE[precision], enabled=precision != "no")


def fill_frozen(model: nn.Module, locations: dict[str, TensorLocation], _: torch.dtype, precision: str) -> None:
    """As `fill`, but with a U-Net's matrices and kernels in the compute precision.

    Norms, biases and embeddings stay float32, as under autocast; they make up a thousandth of the weights.
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


def release(network: nn.Module) -> None:
    """Free the weights of a frozen network; each becomes one NaN expanded to its shape, so that its use is noticed."""
    for p in network.parameters():
        p.data = torch.full((), float("nan"), dtype=p.dtype).expand(p.shape)


@contextmanager
def weights_of(networks: Sequence[tuple[nn.Module, NetworkFiles]]) -> Iterator[None]:
    """Context manager in which released networks have their weights, in float32, from their files."""
    try:
        for network, files in networks:
            fill(network, files.find(), torch.float32)
        yield
    finally:
        for network, _ in networks:
            release(network)


@contextmanager
def on_device(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Context manager in which frozen networks are on `device`; afterwards they are on the CPU."""
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to("cpu")


class UNetLast:
    """Loads weights as `give`, but those of a U-Net only in `load`, so that it needs no memory while pictures are
    encoded.
    """

    def __init__(self, give: Fill) -> None:
        self.give = give
        self.postponed: list[Callable[[], None]] = []

    def __call__(self, model: nn.Module, places: dict[str, TensorLocation], dtype: torch.dtype) -> None:
        if isinstance(model, UNet2DConditionModel):
            self.postponed.append(partial(self.give, model, places, dtype))
        else:
            self.give(model, places, dtype)

    def load(self) -> None:
        while self.postponed:
            self.postponed.pop()()


def cast_trained(model: nn.Module) -> None:
    """Convert trainable weights to float32."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def _matrices(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
