"""The VAE against diffusers', and its KL divergence against the closed form."""

import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from latentdiff.checkpoints.components import read_vae
from latentdiff.checkpoints.folder import write_model
from latentdiff.config.model import IdentityVAEConfig, VAEConfig
from latentdiff.errors import CheckpointError
from latentdiff.models.vae import AutoencoderKL, DiagonalGaussian, IdentityVAE


def levels(widths: tuple[int, ...]) -> dict[str, Any]:
    down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
    return {"block_out_channels": widths, "down_block_types": down, "up_block_types": up}


FULL: dict[str, dict[str, Any]] = {
    "sd1": levels((128, 256, 512, 512)) | {"layers_per_block": 2, "sample_size": 512},
    "xl": levels((128, 256, 512, 512)) | {"layers_per_block": 2, "sample_size": 1024, "scaling_factor": 0.13025},
}
SMALL = {
    "sd": levels((8, 16, 16)) | {"layers_per_block": 2, "norm_num_groups": 4},
    "eight channels": levels((8, 16)) | {"layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 8},
    "plain": levels((8, 16)) | {"norm_num_groups": 4, "use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": levels((8, 16)) | {"norm_num_groups": 4, "mid_block_add_attention": False},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_output_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    theirs = diffusers.AutoencoderKL(**SMALL[name]).eval()
    ours = AutoencoderKL(VAEConfig.read(dict(theirs.config), name)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        expected, found = theirs.encode(x).latent_dist, ours.encode(x)
        assert (found.mean - expected.mean).abs().max() < 1e-5
        assert (found.logvar - expected.logvar).abs().max() < 1e-5
        assert (ours.decode(found.mean) - theirs.decode(found.mean).sample).abs().max() < 1e-5


@pytest.mark.parametrize("name", FULL)
def test_full_size_tensors_have_the_same_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**FULL[name])
        ours = AutoencoderKL(VAEConfig.read(dict(theirs.config), name))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_divergence_equals_torch_distributions() -> None:
    mean, logvar = torch.randn(2, 3, 4, 5, 5).unbind()
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(DiagonalGaussian(mean, logvar).kl(), expected, atol=1e-4)


def test_samples_have_the_mean_and_deviation() -> None:
    posterior = DiagonalGaussian(torch.full((1, 1, 100, 100), 2.0), torch.full((1, 1, 100, 100), 2.0).log())
    draw = posterior.sample(torch.Generator().manual_seed(0))
    assert draw.mean().item() == pytest.approx(2.0, abs=0.05)
    assert draw.var().item() == pytest.approx(2.0, abs=0.1)
    assert torch.equal(draw, posterior.sample(torch.Generator().manual_seed(0)))


def test_a_shifted_latent_space_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"shift_factor=0.1159 is not supported"):
        VAEConfig.read({"shift_factor": 0.1159}, "vae/config.json")


@pytest.mark.parametrize(("channels", "kept"), [(3, lambda x: x), (1, lambda x: x.mean(1, keepdim=True).expand_as(x))])
def test_pixel_space_keeps_pixels_or_their_grey(channels: int, kept: Any, tmp_path: Path) -> None:
    made = IdentityVAE(IdentityVAEConfig.model_validate({"latent_channels": channels}))
    write_model(made, made.config.write(), tmp_path)
    vae, x = read_vae(tmp_path), torch.rand(2, 3, 5, 7) * 2 - 1
    posterior = vae.encode(x)
    assert posterior.mean.shape == (2, channels, 5, 7)
    assert torch.equal(posterior.sample(), posterior.mean)
    assert torch.allclose(vae.decode(posterior.mean), kept(x), atol=1e-6)
    assert vae.config == made.config and vae.config.downscale == vae.config.scaling_factor == 1


@torch.no_grad()
def test_the_input_of_a_level_is_freed_within_it() -> None:
    decoder = AutoencoderKL(VAEConfig.read(SMALL["sd"], "sd")).eval().decoder
    inputs: list[Any] = []
    alive: list[bool] = []
    decoder.up_blocks[0].upsamplers[0].register_forward_hook(lambda _, __, out: inputs.append(weakref.ref(out)))
    decoder.up_blocks[1].resnets[1].register_forward_pre_hook(lambda *_: alive.append(inputs[0]() is not None))
    decoder(torch.randn(1, 4, 4, 4))
    assert alive == [False]
