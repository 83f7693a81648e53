"""Add LoRA (Hu et al. 2022) or DoRA (Liu et al. 2024) to a model, to train it; `lora_writer` saves the result."""

from collections.abc import Sequence

from torch import nn

from latentdiff.checkpoints.components import Components

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def add_lora(parts: Components, rank: int, dora: bool = False, text_encoder: bool = False) -> None:
    """Freeze the U-Net and add trainable low-rank pairs to its attention and feed-forward layers, in place.

    text_encoder: also to the attention layers of the text encoders.
    """
    inject_pairs(parts.denoiser, TARGETS, rank, dora)
    for encoder in parts.text.encoders if text_encoder else ():
        inject_pairs(encoder, TEXT_TARGETS, rank, dora)


def inject_pairs(model: nn.Module, targets: Sequence[str], rank: int, dora: bool = False) -> None:
    """Add trainable low-rank pairs to the layers whose names end in `targets`, and freeze all other weights."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer

    from latentdiff.runtime.training_lora import LoraLinear

    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian", use_dora=dora
    )
    inject_adapter_in_model(config, model)
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not dora:  # autocast casts the weights; casting the input would copy it
            layer.cast_input_dtype_enabled = False
        if type(layer) is Linear and not dora:
            layer.__class__ = LoraLinear
