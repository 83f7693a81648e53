"""Add attention to the largest feature maps of a trained U-Net, without changing its output before further training.

`python -m examples.emoji.attend runs/emoji-unet-8/model/unet -o runs/emoji-unet-8/attending`
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from examples.command import exit_code
from examples.folders import whole_folder
from latentdiff.checkpoints.folder import load_weights, write_model
from latentdiff.config.model import UNetConfig
from latentdiff.errors import InputError
from latentdiff.files import read_json
from latentdiff.models.unet import UNet2DConditionModel


def attending(unet: UNet2DConditionModel, heads: int) -> UNet2DConditionModel:
    """A U-Net like `unet` that attends on its largest maps, with `heads` heads.

    The new attention has zero-initialised output layers, as in ControlNet (Zhang et al. 2023, sec. 3.1). Raises
    InputError if `unet` already has attention there, CheckpointError for heads that do not divide the width.
    """
    config = unet.config
    if config.down_attention(0) or config.up_attention(0):
        raise InputError("this U-Net already has attention on its largest maps; train it without changes")
    changes = {
        "down_block_types": ("CrossAttnDownBlock2D", *config.down_block_types[1:]),
        "up_block_types": (*config.up_block_types[:-1], "CrossAttnUpBlock2D"),
        "attention_head_dim": (heads, *config.num_attention_heads[1:]),
    }
    wider = UNet2DConditionModel(UNetConfig.read(config.write() | changes, f"heads={heads}"))
    new = wider.load_state_dict(unet.state_dict(), strict=False).missing_keys
    for key in new:
        if ".proj_out." in key:
            nn.init.zeros_(wider.get_parameter(key))
    return wider


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unet", type=Path, help="the folder of a U-Net whose largest maps have no attention")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the new weights")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return exit_code(run, parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """Read the U-Net, add attention, and write it."""
    torch.manual_seed(given.seed)
    unet = UNet2DConditionModel(UNetConfig.read(read_json(given.unet / "config.json"), str(given.unet)))
    load_weights(unet, given.unet)
    made = attending(unet, given.heads)
    with whole_folder(given.output) as partial:
        write_model(made, made.config.write(), partial)


if __name__ == "__main__":
    sys.exit(main())
