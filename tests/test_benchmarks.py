"""The benchmarks run; how fast is not asked here."""

import diffusers
import pytest
import torch

from benchmarks import training
from benchmarks.training_shapes import ENDS, Shape, emoji
from latentdiff.config.model import CLIPTextConfig
from latentdiff.models.unet import UNet2DConditionModel
from tests.small import small_unet_config, small_vae_config


def small_shape() -> Shape:
    text = CLIPTextConfig(
        vocab_size=8000, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, **ENDS,
    )  # fmt: skip
    return Shape(name="small", unet=small_unet_config(), vae=small_vae_config(), text=text, batch=2, latents=8)


@pytest.mark.slow
def test_training_measures_every_side() -> None:
    figures = training.measure(small_shape(), rounds=2, steps=1)
    assert list(figures) == ["diffusers", "diffusers, cached", "latentdiff"]
    for found in figures.values():
        assert len(found.seconds) == 2 and min(found.seconds) > 0
        assert found.peak_gib > 0 and 0 < found.loading_share < 1
    assert training.table(figures).count("\n") == 4


@pytest.mark.slow
def test_training_measures_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SIDES", ["latentdiff"])
    figures = training.measure(small_shape(), rounds=1, steps=2, together=False)
    assert len(figures["latentdiff"].seconds) == 2


def test_the_large_shape_is_that_of_stable_diffusion() -> None:
    with torch.device("meta"):
        unets = UNet2DConditionModel(Shape().unet), diffusers.UNet2DConditionModel.from_config(Shape().unet.write())
    assert [sum(p.numel() for p in unet.parameters()) for unet in unets] == [859_520_964] * 2
    assert Shape().resolution == 512


def test_the_bundled_shape_is_that_of_its_recipe() -> None:
    shape = emoji()
    assert (shape.batch, shape.latents, shape.resolution, shape.unet.in_channels) == (64, 16, 128, 8)
