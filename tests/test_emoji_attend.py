"""Adding attention to the largest maps of a U-Net preserves its output, and the new layers can be trained."""

import sys
from pathlib import Path

import pytest
import torch

from examples.emoji import attend
from latentdiff.checkpoints.folder import load_weights, write_model
from latentdiff.config.model import UNetConfig
from latentdiff.files import read_json
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from tests.small import small_unet_config


def ask(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    return unet(latents, torch.tensor([10, 900]), Conditioning(context))


def test_added_attention_preserves_the_output_and_is_trainable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(small_unet_config())
    write_model(unet, unet.config.write(), tmp_path / "unet")
    arguments = ["attend", str(tmp_path / "unet"), "-o", str(tmp_path / "attending"), "--heads", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert attend.main() == 0
    config = UNetConfig.read(read_json(tmp_path / "attending" / "config.json"), "config.json")
    assert config.num_attention_heads == (4, 4)
    made = UNet2DConditionModel(config)
    load_weights(made, tmp_path / "attending")
    assert torch.equal(ask(made), ask(unet))
    ask(made).square().sum().backward()
    new = [block.attentions[0].proj_out.weight for block in (made.down_blocks[0], made.up_blocks[-1])]
    assert all(weight.grad.abs().max() > 0 for weight in new)


@pytest.mark.parametrize(
    ("blocks", "heads", "message"), [("CrossAttnDownBlock2D", 4, "already"), ("DownBlock2D", 3, "heads=3")]
)
def test_unsupported_models_are_one_line_errors(
    blocks: str,
    heads: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    unet = UNet2DConditionModel(small_unet_config(down_block_types=(blocks, "CrossAttnDownBlock2D")))
    write_model(unet, unet.config.write(), tmp_path / "unet")
    arguments = ["attend", str(tmp_path / "unet"), "-o", str(tmp_path / "made"), "--heads", str(heads)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert attend.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "made").exists()
