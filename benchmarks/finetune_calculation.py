"""Memory that training a LoRA needs, calculated without weights: `python -m benchmarks.finetune_calculation`.

A step of the U-Net, forward and backward, runs on fake tensors under bfloat16 autocast, and the bytes of all tensors
that are alive at the same time are counted: frozen weights as `finetune` stores them, LoRA weights, gradients, AdamW's
state and their average in float32, and activations. VAE and text encoders are on the CPU during a step. Not counted:
CUDA's context and the libraries' workspaces, about a GiB.
"""

import argparse
import sys
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import Alive
from benchmarks.networks import SHAPES
from benchmarks.report import table
from latentdiff.config.model import UNetConfig
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.training.lora import TARGETS, inject_pairs

COPIES = 4  # per LoRA weight, besides its gradient: the weight, AdamW's two moments, the average


@dataclass(frozen=True)
class Need:
    """Bytes: of frozen weights, of LoRA weights with optimiser state and average, and the peak of everything else."""

    frozen: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.activations


def calculate(config: UNetConfig, latents: int, batch: int, checkpointing: bool, rank: int = 16) -> Need:
    """The memory needed by one step with `batch` pictures."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(config).requires_grad_(False)
        inject_pairs(unet, TARGETS, rank)
    unet.gradient_checkpointing = checkpointing
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_cpu(unet.train())
        weights = list(unet.parameters())
        conditioning = Conditioning(torch.randn(batch, 77, config.cross_attention_dim))
        if config.addition_embed_type is not None:
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            side = 8 * latents
            conditioning = Conditioning(conditioning.hidden, torch.randn(batch, pooled))
            conditioning = conditioning.with_time_ids(side, side, 0, 0, side, side)
        noisy = torch.randn(batch, config.in_channels, latents, latents)
        with Alive(weights) as alive:
            with torch.autocast("cpu", torch.bfloat16):
                output = unet(noisy, torch.full((batch,), 500), conditioning)
            output.float().square().mean().backward()
    frozen = sum(weight.nbytes for weight in weights if not weight.requires_grad)
    return Need(frozen, COPIES * sum(weight.nbytes for weight in weights if weight.requires_grad), alive.peak)


def _on_fake_cpu(model: nn.Module) -> None:
    """Replace weights on meta by fake ones: frozen matrices and kernels in bfloat16, all else in float32."""
    for layer in model.modules():
        halved = isinstance(layer, (nn.Linear, nn.Conv2d))
        for name, p in layer.named_parameters(recurse=False):
            dtype = torch.bfloat16 if halved and name == "weight" and not p.requires_grad else torch.float32
            setattr(layer, name, nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="sdxl", choices=["sd15", "sd2", "sdxl"])
    parser.add_argument("--latents", type=int, help="height and width; by default those the shape was trained at")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    config = SHAPES[given.shape]
    assert config is not None
    rows = []
    for checkpointing in (True, False):
        for batch in given.batches:
            need = calculate(config, given.latents or config.sample_size, batch, checkpointing)
            parts = [need.frozen, need.trained, need.activations, need.total]
            rows.append([str(batch), "yes" if checkpointing else "no", *(f"{part / 2**30:.2f}" for part in parts)])
            print(" ".join(rows[-1]), file=sys.stderr)
    header = ["batch", "gradient checkpointing", "frozen GiB", "trained GiB", "activations GiB", "total GiB"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
