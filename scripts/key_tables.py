"""Write latentdiff/checkpoints/data/key_tables.json: names of weights in Stable Diffusion's own layout and diffusers'.

Each table is derived from diffusers' single-file converters: they convert a state dict whose values are its keys, so
that the result maps new names to original ones. Names are stored without the end that both layouts share. Run it again
after a release of diffusers that changes them: python -m scripts.key_tables
"""

import json
from pathlib import Path

from diffusers.loaders import single_file_utils as diffusers_layout

TARGET = Path(__file__).parents[1] / "latentdiff" / "checkpoints" / "data" / "key_tables.json"
RESIDUAL = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
ATTENTION = ("norm", "proj_in", "proj_out", "transformer_blocks.0.attn1.to_q")
VAE_RESIDUAL = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
VAE_ATTENTION = ("norm", "q", "k", "v", "proj_out")
LEVELS, LAYERS = (3, 4), 2
TEXT_LAYER = ("attn.out_proj.weight", "ln_1.weight", "ln_2.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class Named:
    """Replaces a tensor in a converter."""

    shape = (1, 1)

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def T(self) -> "Named":  # noqa: N802
        return self

    def contiguous(self) -> "Named":
        return self


def unet_names(levels: int) -> list[str]:
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2", "label_emb.0.0", "label_emb.0.2"]
    for block in range(1, levels * (LAYERS + 1)):
        if block % (LAYERS + 1) == 0:
            names.append(f"input_blocks.{block}.0.op")
        else:
            names += [f"input_blocks.{block}.0.{end}" for end in RESIDUAL]
            names += [f"input_blocks.{block}.1.{end}" for end in ATTENTION]
    names += [f"middle_block.{k}.{end}" for k in (0, 2) for end in RESIDUAL]
    names += [f"middle_block.1.{end}" for end in ATTENTION]
    for block in range(levels * (LAYERS + 1)):
        names += [f"output_blocks.{block}.0.{end}" for end in RESIDUAL]
        names += [f"output_blocks.{block}.1.{end}" for end in ATTENTION]
        if block % (LAYERS + 1) == LAYERS and block < levels * (LAYERS + 1) - 1:
            names += [f"output_blocks.{block}.1.conv", f"output_blocks.{block}.2.conv"]
    return names


def unet_table(levels: int) -> list[tuple[str, str]]:
    names = [f"{name}.{end}" for name in unet_names(levels) for end in ("weight", "bias")]
    state = {f"model.diffusion_model.{name}": Named(name) for name in names}
    config = {"layers_per_block": LAYERS, "addition_embed_type": "text_time"}
    pairs = set()
    for upsampler in ("1.conv", "2.conv"):  # its index depends on whether the level has attention; both are read
        kept = {
            key: value for key, value in state.items() if not key.endswith((f"{upsampler}.weight", f"{upsampler}.bias"))
        }
        made = diffusers_layout.convert_ldm_unet_checkpoint(kept, config)
        pairs |= {(key, value.name) for key, value in made.items()}
    return shortened(pairs)


def vae_table() -> list[tuple[str, str]]:
    names = ["quant_conv", "post_quant_conv"]
    for part, way, change in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        names += [f"{part}.{end}" for end in ("conv_in", "conv_out", "norm_out")]
        names += [f"{part}.mid.block_{k}.{end}" for k in (1, 2) for end in VAE_RESIDUAL]
        names += [f"{part}.mid.attn_1.{end}" for end in VAE_ATTENTION]
        for level in range(4):
            layers = range(LAYERS + (part == "decoder"))
            names += [f"{part}.{way}.{level}.block.{k}.{end}" for k in layers for end in VAE_RESIDUAL]
            names.append(f"{part}.{way}.{level}.{change}.conv")
    state = {f"first_stage_model.{name}.{end}": Named(f"{name}.{end}") for name in names for end in ("weight", "bias")}
    config = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    made = diffusers_layout.convert_ldm_vae_checkpoint(state, config)
    return shortened({(key, value.name) for key, value in made.items()})


def open_clip_table() -> list[tuple[str, str]]:
    """Only the first layer, since the number follows `layers.` or `resblocks.` in all layers."""
    names = ["positional_embedding", "token_embedding.weight", "ln_final.weight", "text_projection"]
    names += [f"transformer.resblocks.0.{end}" for end in TEXT_LAYER]
    state = {f"conditioner.{name}": Named(name) for name in names}
    made = diffusers_layout.convert_open_clip_checkpoint(Named("model"), state, prefix="conditioner.")
    whole = {"positional_embedding", "text_projection"}
    pairs = [(k, v.name) for k, v in made.items()]
    return [(k, v) if v in whole else (k.removesuffix(".weight"), v.removesuffix(".weight")) for k, v in pairs]


def shortened(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """(diffusers, original) prefixes: both names without their common last components.

    A convolution that changes the size keeps its name: in the original layout it shares a prefix with attention.
    """
    out = set()
    for diffusers_name, name in pairs:
        ours, theirs = diffusers_name.split("."), name.split(".")
        while len(ours) > 1 and len(theirs) > 1 and ours[-1] == theirs[-1] != "conv":
            ours.pop()
            theirs.pop()
        out.add((".".join(ours), ".".join(theirs)))
    return sorted(out)


def main() -> None:
    tables = {f"unet_{levels}": unet_table(levels) for levels in LEVELS}
    tables |= {"vae": vae_table(), "open_clip": open_clip_table()}
    rows = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in table) + "\n ]"
        for name, table in tables.items()
    ]
    TARGET.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
