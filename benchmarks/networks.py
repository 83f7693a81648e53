"""The networks that are timed: their shapes, inputs, and random weights, which are the same for all contestants."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentdiff.checkpoints.locate_model import locate
from latentdiff.config.base import Config
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL

SDXL = UNetConfig(
    sample_size=128,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    num_attention_heads=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
)


SD2 = UNetConfig(num_attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
SHAPES: dict[str, UNetConfig | None] = {"sd15": UNetConfig(), "sd2": SD2, "sdxl": SDXL, "emoji": None}


class UNet(Config):
    """A call of a U-Net on `batch` latents with the height and width `latents`, and `tokens` tokens of text."""

    kind: Literal["unet"] = "unet"
    diffusers_class: ClassVar[str] = "UNet2DConditionModel"
    config: UNetConfig = UNetConfig()
    tokens: int = 77
    batch: int = 2
    latents: int = 64
    device: str = "cpu"

    def network(self) -> UNet2DConditionModel:
        return UNet2DConditionModel(self.config)

    def ours(self, model: nn.Module) -> nn.Module:
        return OurUNet(model)

    def theirs(self, model: nn.Module) -> nn.Module:
        return TheirUNet(model)

    def inputs(self) -> tuple[Tensor, ...]:
        """Latents, timesteps, text, and for SDXL pooled text and sizes; float32."""
        rng, config = torch.Generator().manual_seed(1), self.config
        sample = torch.randn(self.batch, config.in_channels, self.latents, self.latents, generator=rng)
        context = torch.randn(self.batch, self.tokens, config.cross_attention_dim, generator=rng)
        basic = (sample, torch.full((self.batch,), 500), context)
        if config.addition_embed_type is None:
            return basic
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        side = 8.0 * self.latents
        sizes = torch.tensor([side, side, 0, 0, side, side]).repeat(self.batch, 1)
        return (*basic, torch.randn(self.batch, pooled, generator=rng), sizes)


class Decoder(Config):
    """A call of a VAE's decoder that returns `batch` square pictures with `size` pixels a side."""

    kind: Literal["decoder"] = "decoder"
    diffusers_class: ClassVar[str] = "AutoencoderKL"
    config: VAEConfig = VAEConfig()
    batch: int = 1
    size: int = 512
    device: str = "cpu"

    def network(self) -> AutoencoderKL:
        return AutoencoderKL(self.config)

    def ours(self, model: nn.Module) -> nn.Module:
        return OurDecoder(model)

    def theirs(self, model: nn.Module) -> nn.Module:
        return TheirDecoder(model)

    def inputs(self) -> tuple[Tensor, ...]:
        """Latents, float32."""
        rng, side = torch.Generator().manual_seed(1), self.size // self.config.downscale
        return (torch.randn(self.batch, self.config.latent_channels, side, side, generator=rng),)


Network = UNet | Decoder


class OurUNet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.conditioning: Conditioning | None = None

    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor, *added: Tensor) -> Tensor:
        if self.conditioning is None or self.conditioning.hidden is not context:
            pooled, ids = added or (None, None)
            self.conditioning = Conditioning(context, pooled, ids)  # one prompt, as in the steps of a sampling run
        out: Tensor = self.model(sample, timesteps, self.conditioning)
        return out


class TheirUNet(OurUNet):
    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor, *added: Tensor) -> Tensor:
        kwargs = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
        out: Tensor = self.model(sample, timesteps, context, added_cond_kwargs=kwargs, return_dict=False)[0]
        return out


class OurDecoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.model.decode(z)
        return out


class TheirDecoder(OurDecoder):
    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.model.decode(z, return_dict=False)[0]
        return out


def weights(network: Network, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights, the same in every process."""
    torch.manual_seed(0)
    state = network.network().state_dict()
    return {key: state.pop(key).to(dtype) for key in list(state)}


def flops(network: Network) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of one call."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.ours(network.network())(*(x.to("meta") for x in network.inputs()))
    return counter.get_total_flops()


def parameters(network: Network) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in network.network().parameters())


def unet(shape: str, latents: int | None = None, **settings: Any) -> UNet:
    """`sd15`, `sd2`, `sdxl`, or `emoji` for the bundled model; by default with the latent size it was trained at."""
    config, tokens = SHAPES[shape], 77
    if config is None:
        folder = locate(None)
        raw, text = (_json(folder / part / "config.json") for part in ("unet", "text_encoder"))
        config, tokens = UNetConfig.read(raw, "unet"), text["max_position_embeddings"]
    return UNet(config=config, tokens=tokens, latents=latents or config.sample_size, **settings)


def decoder(shape: str, size: int | None = None, **settings: Any) -> Decoder:
    """`sd15`, or `emoji` for the bundled model; by default with the size it was trained at."""
    config = VAEConfig() if shape == "sd15" else VAEConfig.read(_json(locate(None) / "vae" / "config.json"), "vae")
    return Decoder(config=config, size=size or config.sample_size, **settings)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
