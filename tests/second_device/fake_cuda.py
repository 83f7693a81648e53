"""Checks that run on "cuda" with fake tensors, which have a device and a shape but no data.

`python -m tests.second_device.fake_cuda GUARD` prints the result of each check as JSON. An operation on operands of two
devices raises, as on a GPU, and so does reading a value, which would wait for the GPU.
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

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.denoiser import Guidance, GuidedDenoiser, NetworkDenoiser, Row
from latentdiff.device_transfer import send
from latentdiff.models.conditioning import Conditioning, PromptConditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.runtime import compiled
from latentdiff.runtime.optimize import prepare
from latentdiff.sampling.loop import Levels, SamplerState, sample
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
    """Two images at different levels, with guidance: all steps, and no value is read."""
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
        return str(sample(denoiser, states)[1].device)


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
    numbers = NetworkDenoiser._x0_coefficients

    def real_numbers(self: NetworkDenoiser, levels: Levels) -> tuple[list[float], list[float]]:
        with unset_fake_temporarily():  # arithmetic on the CPU
            return numbers(self, levels)

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        patch.object(Tensor, "pin_memory", lambda tensor: pinned.append(list(tensor.shape)) or tensor),
        patch.object(NetworkDenoiser, "_x0_coefficients", real_numbers),
    ):
        yield pinned


def staying() -> AbstractContextManager[object]:
    """A change of the memory format of fake weights fails in torch; what follows does not depend on it."""
    return patch.object(nn.Module, "to", lambda module, **_: module)


CHECKS = (text, vae, sampling, training_step, compiling)


def main(guard: str) -> None:
    ctypes.CDLL(guard)
    with fake():
        found = {"mixed_operands": mixed_operands()}
    found |= {check.__name__: check() for check in CHECKS}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
