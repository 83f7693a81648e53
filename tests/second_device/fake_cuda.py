"""Checks that run on "cuda" with fake tensors, which have a device and a shape but no data.

`python -m tests.second_device.fake_cuda GUARD` prints the result of each check as JSON. An operation on operands of two
devices raises, as on a GPU, and so does reading a value, which would wait for the GPU. Copies for
which it would wait are counted.
"""

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.denoiser import Guidance, GuidedDenoiser, NetworkDenoiser, Row
from latentdiff.device_transfer import send
from latentdiff.models.conditioning import Conditioning, PromptConditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.runtime import compiled
from latentdiff.runtime.optimize import prepare
from latentdiff.sampling import tiled_denoiser
from latentdiff.sampling.loop import SamplerState, sample, step
from latentdiff.sampling.samplers import plan
from latentdiff.sampling.schedule import Schedule
from tests.small import small_text_encoder, small_tokenizer, small_unet_config, small_vae_config

CUDA = torch.device("cuda:0")


def mixed_operands() -> str:
    """The check itself: without it everything below would pass."""
    try:
        torch.zeros(2) + torch.zeros(2, device=CUDA)
    except Exception as error:
        return type(error).__name__
    return "nothing"


class WaitingCopies(TorchDispatchMode):
    """Counts copies from the CPU for which CUDA would wait: those that are not asynchronous."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        source = {torch.ops.aten._to_copy.default: args[:1], torch.ops.aten.copy_.default: args[1:2]}.get(func, ())
        if source and not kwargs.get("non_blocking", False):
            self.count += (source[0].device.type, out.device.type) == ("cpu", "cuda")
        return out


def waiting() -> str:
    """The count itself: `torch.tensor` copies from memory that is not pinned."""
    with fake(), WaitingCopies() as copies:
        made = [torch.tensor([1.0, 2.0], device=CUDA), send(torch.tensor([1.0, 2.0]), CUDA)]
    return f"{copies.count} of {len(made)}"


def text() -> str:
    encoder = small_text_encoder(small_tokenizer(), projection=True)
    with fake():
        found = encoder.to(CUDA)(torch.zeros(2, 16, dtype=torch.long, device=CUDA))
    assert found.text_embeds is not None
    return f"{found.last_hidden_state.device} {found.text_embeds.device}"


def vae() -> str:
    model = AutoencoderKL(small_vae_config())
    with fake():
        model.to(CUDA)
        with staying():
            prepare(model)
        mean = model.encode(torch.zeros(1, 3, 16, 16, device=CUDA)).mean
        return f"{mean.device} {model.decode(mean).device}"


def sampling() -> str:
    """Two images with guidance: all steps, and in tiles a step at different levels. No value is read, no copy waits."""
    unet, schedule = UNet2DConditionModel(small_unet_config()), Schedule(ScheduleConfig())
    steps = plan(schedule, "ddpm", 4)
    with fake():
        unet.to(CUDA, torch.bfloat16)
        with staying():
            prepare(unet)
        prompt = PromptConditioning.constant(Conditioning(torch.zeros(1, 16, 32, device=CUDA, dtype=torch.bfloat16)))
        states = [
            SamplerState(steps, torch.zeros(4, 8, 8, device=CUDA), torch.Generator().manual_seed(k)) for k in range(2)
        ]
        rows = [Row(state, (prompt,), prompt, Guidance(3.0)) for state in states]
        denoiser = GuidedDenoiser(NetworkDenoiser(unet, schedule, torch.bfloat16), rows)
        with WaitingCopies() as copies:
            x0 = sample(denoiser, states)[1]
            ahead, _ = step(denoiser, states)
            step(tiled_denoiser.in_tiles(denoiser, 4), [ahead[0], states[1]])
    return f"{x0.device}, {copies.count} copies wait"


def training_step() -> str:
    """Copies of a step to the GPU come from pinned memory and are asynchronous."""
    schedule = Schedule(ScheduleConfig())
    with fake() as pinned:
        x0 = send(torch.zeros(3, 4, 8, 8), CUDA)
        noisy = schedule.add_noise(x0, x0, torch.tensor([1, 2, 3]))
        text = Conditioning(torch.zeros(3, 16, 32), torch.zeros(3, 8)).to(CUDA)
    assert text.pooled is not None
    return f"{noisy.device} {text.hidden.device} {text.pooled.device} pinned {pinned}"


def compiling() -> str:
    """On CUDA torch.compile tunes and records a graph, whose output is copied before the next call overwrites it."""
    asked: dict[str, Any] = {}
    copied: list[Tensor] = []

    def remember(forward: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        asked.update(options)
        return forward

    model = nn.Conv2d(3, 3, 1)
    with fake(), patch.object(torch, "compile", remember), patch.object(compiled, "open_cache", lambda _: None):
        model.to(CUDA)
        with staying():
            compiled.compile_model(model, lambda _: None)
        with patch.object(Tensor, "clone", lambda tensor: copied.append(tensor) or tensor):
            model(torch.zeros(1, 3, 8, 8, device=CUDA))
    return f"{asked['mode']} {asked['fullgraph']} copied {len(copied)}"


@contextmanager
def fake() -> Iterator[list[list[int]]]:
    """Fake tensors, and the shapes of those that were pinned."""
    pinned: list[list[int]] = []
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        patch.object(Tensor, "pin_memory", lambda tensor: pinned.append(list(tensor.shape)) or tensor),
        patch.object(NetworkDenoiser, "_x0_coefficients", not_fake(NetworkDenoiser._x0_coefficients)),
        patch.object(tiled_denoiser, "cuts", not_fake(tiled_denoiser.cuts)),
    ):
        yield pinned


def not_fake(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function for real tensors: arithmetic on the CPU."""

    def call(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return call


def staying() -> AbstractContextManager[object]:
    """A change of the memory format of fake weights fails in torch; what follows does not depend on it."""
    return patch.object(nn.Module, "to", lambda module, **_: module)


CHECKS = (waiting, text, vae, sampling, training_step, compiling)


def main(guard: str) -> None:
    ctypes.CDLL(guard)
    with fake():
        found = {"mixed_operands": mixed_operands()}
    found |= {check.__name__: check() for check in CHECKS}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
