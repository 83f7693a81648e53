"""Configs of the U-Net and the VAE, with the keys of diffusers' JSON files."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from latentdiff.config.diffusers_json import (
    Channels,
    Depth,
    Epsilon,
    Heads,
    Layers,
    ModelConfig,
    Scale,
)


class UNetConfig(ModelConfig):
    """Config of `UNet2DConditionModel`; the defaults are those of Stable Diffusion 1.5."""

    sample_size: Channels = 64
    in_channels: Channels = 4
    out_channels: Channels = 4
    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    up_block_types: tuple[Literal["UpBlock2D", "CrossAttnUpBlock2D"], ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    block_out_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)] = (320, 640, 1280, 1280)
    layers_per_block: Layers = 2
    num_attention_heads: tuple[Heads, ...] = (8, 8, 8, 8)
    transformer_layers_per_block: tuple[Depth | tuple[Depth, ...], ...] = (1, 1, 1, 1)
    reverse_transformer_layers_per_block: tuple[Depth | tuple[Depth, ...], ...] | None = None
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = "UNetMidBlock2DCrossAttn"
    cross_attention_dim: Channels = 768
    use_linear_projection: bool = False
    norm_num_groups: Channels = 32
    norm_eps: Epsilon = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[float, Field(ge=-1, le=1)] = 0
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: Channels = 256
    projection_class_embeddings_input_dim: Channels = 2816

    @property
    def downscale(self) -> int:
        """Factor between the sides of the input and of the smallest feature map."""
        return 2 ** (len(self.block_out_channels) - 1)

    def down_attention(self, level: int) -> bool:
        return self.down_block_types[level] == "CrossAttnDownBlock2D"

    def up_attention(self, level: int) -> bool:
        """Whether each level has attention in its up block, from the largest feature map to the smallest.

        diffusers lists up blocks in the opposite order.
        """
        return self.up_block_types[::-1][level] == "CrossAttnUpBlock2D"

    def down_depths(self, level: int) -> tuple[int, ...]:
        """Transformer blocks in each attention module of the down blocks, by level."""
        depth = self.transformer_layers_per_block[level]
        return (depth,) * self.layers_per_block if isinstance(depth, int) else depth

    def up_depths(self, level: int) -> tuple[int, ...]:
        """Transformer blocks in each attention module of the up blocks, by level."""
        reverse = self.reverse_transformer_layers_per_block or self.transformer_layers_per_block[::-1]
        depth = reverse[len(reverse) - 1 - level]
        return (depth,) * (self.layers_per_block + 1) if isinstance(depth, int) else depth

    @property
    def mid_depth(self) -> int:
        """Transformer blocks in the middle block."""
        depth = self.transformer_layers_per_block[-1]
        return depth if isinstance(depth, int) else depth[0]

    @property
    def residual_blocks(self) -> int:
        """The number of residual blocks."""
        mid = {"UNetMidBlock2DCrossAttn": 2, "UNetMidBlock2D": 1, None: 0}[self.mid_block_type]
        return mid + len(self.block_out_channels) * (2 * self.layers_per_block + 1)

    @property
    def transformer_blocks(self) -> int:
        """The number of transformer blocks."""
        levels = range(len(self.block_out_channels))
        down = sum(sum(self.down_depths(level)) for level in levels if self.down_attention(level))
        up = sum(sum(self.up_depths(level)) for level in levels if self.up_attention(level))
        return down + up + (self.mid_depth if self.mid_block_type == "UNetMidBlock2DCrossAttn" else 0)

    @model_validator(mode="before")
    @classmethod
    def _one_value_a_level(cls, raw: Any) -> Any:
        """Repeat single numbers for all levels. diffusers' `attention_head_dim` is the *number* of heads."""
        raw = dict(raw)
        widths = raw.get("block_out_channels", cls.model_fields["block_out_channels"].default)
        levels = len(widths) if isinstance(widths, list | tuple) else 1
        for key, default in (("num_attention_heads", 8), ("transformer_layers_per_block", 1)):
            value = raw.get(key, default)
            raw[key] = (value,) * levels if isinstance(value, int) else value
        return raw

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types", "num_attention_heads", "transformer_layers_per_block"):
            if len(getattr(self, key)) != levels:
                raise ValueError(f"{key} needs {levels} entries, one per entry of block_out_channels")
        self._check_depths(levels)
        for width, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            if width % self.norm_num_groups or width % heads:
                raise ValueError(
                    f"block_out_channels={width} must be divisible by norm_num_groups={self.norm_num_groups}, "
                    f"heads={heads}"
                )
        return self

    def _check_depths(self, levels: int) -> None:
        reverse = self.reverse_transformer_layers_per_block
        nested = any(isinstance(depth, tuple) for depth in self.transformer_layers_per_block)
        if len(reverse or self.block_out_channels) != levels or (nested and reverse is None):
            raise ValueError(f"reverse_transformer_layers_per_block={reverse} needs {levels} entries, one per level")
        for level in range(levels):
            for depths, count in ((self.down_depths(level), 0), (self.up_depths(level), 1)):
                if len(depths) != self.layers_per_block + count:
                    raise ValueError(f"transformer_layers_per_block={depths} needs one entry per attention")

    @classmethod
    def read(cls, raw: dict[str, Any], where: str) -> Self:
        heads = raw.get("num_attention_heads") or raw.get("attention_head_dim", 8)
        defaults = ("freq_shift", "projection_class_embeddings_input_dim", "addition_time_embed_dim", "sample_size")
        kept = {k: v for k, v in raw.items() if not (k in defaults and v is None)}
        match kept.get("sample_size"):
            case [height, width] if height == width:
                kept["sample_size"] = height
        return super().read({**kept, "num_attention_heads": heads}, where)

    def write(self) -> dict[str, Any]:
        out = super().write()
        out["attention_head_dim"] = out.pop("num_attention_heads")
        if self.addition_embed_type is None:
            out |= {"addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None}
        return out

    @classmethod
    def _class_name(cls) -> str:
        return "UNet2DConditionModel"

    @classmethod
    def _without_effect(cls) -> Collection[str]:
        return "addition_embed_type_num_heads", "attention_head_dim", "dropout", "upcast_attention"

    @classmethod
    def _only(cls) -> dict[str, tuple[Any, ...]]:
        off = (None, False)
        return {
            "_class_name": ("UNet2DConditionModel",),
            "act_fn": ("silu", "swish"),
            "resnet_time_scale_shift": ("default",),
            "time_embedding_type": ("positional",),
            "time_embedding_dim": off,
            "time_embedding_act_fn": off,
            "timestep_post_act": off,
            "time_cond_proj_dim": off,
            "class_embed_type": off,
            "num_class_embeds": off,
            "encoder_hid_dim": off,
            "encoder_hid_dim_type": off,
            "attention_type": ("default",),
            "dual_cross_attention": off,
            "only_cross_attention": off,
            "mid_block_only_cross_attention": off,
            "resnet_skip_time_act": off,
            "resnet_out_scale_factor": (1.0,),
            "cross_attention_norm": off,
            "center_input_sample": off,
            "class_embeddings_concat": off,
            "conv_in_kernel": (3,),
            "conv_out_kernel": (3,),
            "downsample_padding": (1,),
            "mid_block_scale_factor": (1,),
        }


class VAEConfig(ModelConfig):
    """Config of `AutoencoderKL`; the defaults are those of Stable Diffusion 1.5."""

    in_channels: Channels = 3
    out_channels: Channels = 3
    latent_channels: Channels = 4
    block_out_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)] = (128, 256, 512, 512)
    layers_per_block: Layers = 2
    norm_num_groups: Channels = 32
    sample_size: Channels = 512
    scaling_factor: Scale = 0.18215
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = False

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels={width} must be divisible by norm_num_groups={self.norm_num_groups}"
                )
        return self

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def write(self) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
        return {**super().write(), "down_block_types": down, "up_block_types": up}

    @classmethod
    def _class_name(cls) -> str:
        return "AutoencoderKL"

    @classmethod
    def _without_effect(cls) -> Collection[str]:
        return "down_block_types", "up_block_types"

    @classmethod
    def _only(cls) -> dict[str, tuple[Any, ...]]:
        return {
            "_class_name": ("AutoencoderKL",),
            "act_fn": ("silu",),
            "shift_factor": (None, 0.0),
            "latents_mean": (None,),
            "latents_std": (None,),
        }


class IdentityVAEConfig(ModelConfig):
    """Config of diffusion in pixel space, in RGB or greyscale. diffusers has no counterpart."""

    latent_channels: Literal[1, 3] = 3
    scaling_factor: ClassVar[float] = 1.0
    downscale: ClassVar[int] = 1
    force_upcast: ClassVar[bool] = False

    @classmethod
    def _class_name(cls) -> str:
        return "IdentityVAE"


def side_multiple(unet: UNetConfig, vae: VAEConfig | IdentityVAEConfig) -> int:
    """The number of which image sides must be multiples: pixels per latent, or in pixel space the U-Net's downsampling
    factor.
    """
    return unet.downscale if isinstance(vae, IdentityVAEConfig) else vae.downscale
