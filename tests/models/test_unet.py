"""The U-Net against diffusers': outputs of small random models, and the keys of full-size ones."""

from typing import Any

import diffusers
import pytest
import torch

from latentdiff.config.model import UNetConfig
from latentdiff.errors import CheckpointError
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SD1: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
    "up_block_types": (UP, CROSS_UP, CROSS_UP, CROSS_UP),
}  # fmt: skip
SD2: dict[str, Any] = SD1 | {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True, "upcast_attention": True,
}  # fmt: skip
XL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN), "up_block_types": (CROSS_UP, CROSS_UP, UP),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
FULL = {"sd1": SD1, "sd2": SD2, "xl": XL, "inpainting": SD1 | {"in_channels": 9}}
SMALL = {
    "sd1": SD1 | {"block_out_channels": (16, 32, 64, 64), "cross_attention_dim": 24, "attention_head_dim": 4},
    "sd2": SD2
    | {"block_out_channels": (16, 32, 64, 64), "cross_attention_dim": 24, "attention_head_dim": (2, 4, 8, 8)},
    "xl": XL
    | {"block_out_channels": (16, 32, 64), "cross_attention_dim": 24, "attention_head_dim": (2, 4, 8)}
    | {"transformer_layers_per_block": (1, 2, 3), "addition_time_embed_dim": 8}
    | {"projection_class_embeddings_input_dim": 20 + 6 * 8},
    "one layer a block": {
        "sample_size": 16, "in_channels": 8, "out_channels": 8, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": (DOWN, CROSS_DOWN), "up_block_types": (CROSS_UP, UP), "attention_head_dim": (2, 4),
        "cross_attention_dim": 24,
    },
}  # fmt: skip
SMALL["inpainting"] = SMALL["sd1"] | {"in_channels": 9}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (24, 8), (10, 12)])
def test_output_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    theirs = diffusers.UNet2DConditionModel(**SMALL[name], norm_num_groups=8).eval()
    config = UNetConfig.read(dict(theirs.config), name)
    ours = UNet2DConditionModel(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    sample = torch.randn(2, config.in_channels, *size)
    timesteps, hidden = torch.tensor([7, 901]), torch.randn(2, 5, 24)
    conditioning, added = Conditioning(hidden), None
    if config.addition_embed_type:
        conditioning = Conditioning(hidden, torch.randn(2, 20), torch.randint(0, 1024, (2, 6)))
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
    with torch.no_grad():
        expected = theirs(sample, timesteps, hidden, added_cond_kwargs=added).sample
        found = ours(sample, timesteps, conditioning)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", FULL)
def test_full_size_tensors_have_the_same_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**FULL[name])
        ours = UNet2DConditionModel(UNetConfig.read(dict(theirs.config), name))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", SMALL)
def test_written_config_is_read_alike_by_diffusers(name: str) -> None:
    first = diffusers.UNet2DConditionModel(**SMALL[name], norm_num_groups=8)
    config = UNetConfig.read(dict(first.config), name)
    second = diffusers.UNet2DConditionModel.from_config(config.write())
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in second.state_dict().items()}
    assert UNetConfig.read(dict(second.config), name) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim=256 is not supported"),
        ({"down_block_types": ("Down", "Up")}, "down_block_types"),
        ({"attention_head_dim": (3, 3)}, "must be divisible"),
        ({"up_block_types": (UP,)}, "needs 2 entries"),
    ],
)
def test_unsupported_settings_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        UNetConfig.read(SMALL["one layer a block"] | {"norm_num_groups": 8} | change, "unet/config.json")


def test_xl_without_sizes_is_an_error() -> None:
    model = UNet2DConditionModel(UNetConfig.read(SMALL["xl"] | {"norm_num_groups": 8}, "xl"))
    with pytest.raises(ValueError, match="pass pooled and time_ids"):
        model(torch.randn(1, 4, 8, 8), torch.tensor([1]), Conditioning(torch.randn(1, 5, 24)))
