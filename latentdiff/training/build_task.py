"""Build the task of a training config: open its models, and select the weights to train and to save."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latentdiff.checkpoints.components import (
    Components,
    fill,
    open_model,
    read_limits,
    read_pipeline,
    read_text_encoder,
    read_vae,
    write_pipeline,
)
from latentdiff.checkpoints.folder import load_weights, read_vae_config
from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.checkpoints.model_source import ModelSource, OpenOptions
from latentdiff.checkpoints.textual_inversion import add_token, save_learned
from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import IdentityVAEConfig, side_multiple
from latentdiff.config.train import FineTuneConfig, TextTrainConfig, TrainConfig, UNetTrainConfig, VAETrainConfig
from latentdiff.data.buckets import Fitting
from latentdiff.errors import InputError
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import VAE, IdentityVAE
from latentdiff.sampling.schedule import Schedule
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.training.autoencoder import AutoencoderTask
from latentdiff.training.denoiser import DenoiserTask
from latentdiff.training.frozen import UNetLast, cast_trained, fill_frozen
from latentdiff.training.lora import add_lora
from latentdiff.training.prior import prior_rows
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.task import Task


def open_base_model(base: str | None, options: OpenOptions) -> ModelSource:
    """The model to fine-tune. Raises InputError for a U-Net with inputs besides the noisy latents."""
    source = open_model(base, options)
    channels = source.unet.config.in_channels
    if channels != source.unet.config.out_channels:
        raise InputError(f"base={source.path} has in_channels={channels} (inpainting or editing); "
                         "fine-tuning is for text-to-image models")  # fmt: skip
    if source.unet.config.addition_embed_type is not None and len(source.text_encoders) == 1:
        raise InputError(f"base={source.path} is a refiner of SDXL; fine-tuning is for text-to-image models")
    return source


def picture_limits(config: TrainConfig) -> tuple[Fitting, Callable[[str], str]]:
    """The sizes that pictures are fitted to, and a function that returns a caption's words over the token limit."""
    match config:
        case FineTuneConfig():
            limits = read_limits(open_base_model(config.base, OpenOptions(**config.base_options.model_dump())))
            return Fitting.of(config.data, limits.multiple), limits.text.lost_words
        case UNetTrainConfig():
            vae = IdentityVAEConfig() if config.vae is None else read_vae_config(config.vae)
            lost_words = read_text_encoder(config.text_encoder).lost_words
            return Fitting.of(config.data, side_multiple(config.model, vae)), lost_words
    square = config.data.model_copy(update={"buckets": False})
    return Fitting.of(square, 1), lambda caption: ""


def build_task(config: TrainConfig, folder: RunFolder) -> Task:
    """Load the model and the data of the run in `folder`. Raises InputError and CheckpointError."""
    match config:
        case FineTuneConfig():
            return finetune_task(config, folder)
        case UNetTrainConfig():
            return scratch_task(config, folder)
        case VAETrainConfig():
            return AutoencoderTask(config)
        case TextTrainConfig():
            from latentdiff.training.text_encoder import TextEncoderTask  # transformers, which takes seconds

            return TextEncoderTask(config, folder.tokenizer)
    raise TypeError(type(config))


def scratch_task(config: UNetTrainConfig, folder: RunFolder) -> DenoiserTask:
    """A new U-Net, or the one in `init`, with the VAE (or pixel space) and text encoder that the config names."""
    text = read_text_encoder(config.text_encoder)
    text.requires_grad_(config.train_text_encoder)
    unet = UNet2DConditionModel(config.model)
    if config.init is not None:
        load_weights(unet, config.init)
    pixels = IdentityVAEConfig(latent_channels=1 if config.model.in_channels == 1 else 3)
    vae = IdentityVAE(pixels) if config.vae is None else read_vae(config.vae)
    _refuse_other_widths(config, text, vae)
    generation = GenerationConfig(num_inference_steps=config.sample_steps, guidance_scale=config.guidance_scale)
    parts = Components(unet, vae, text, Schedule(config.schedule), generation=generation)
    return DenoiserTask(config, folder, parts, trains_text=config.train_text_encoder)


def _refuse_other_widths(config: UNetTrainConfig, text: TextConditioner, vae: VAE) -> None:
    """Raise InputError unless the U-Net's widths match the text encoder and the VAE."""
    encoder: Any = text.encoders[0]
    width, channels = encoder.config.hidden_size, vae.config.latent_channels
    if config.model.cross_attention_dim != width:
        given = f"model.cross_attention_dim={config.model.cross_attention_dim}"
        raise InputError(f"{given} must be {width}, the hidden size of {config.text_encoder}; set it to {width}")
    if (needs := (config.model.in_channels, config.model.out_channels)) != (channels, channels):
        raise InputError(
            f"model.in_channels, out_channels={needs} must be {channels}, the latents' channels; set both to {channels}"
        )


def finetune_task(config: FineTuneConfig, folder: RunFolder) -> DenoiserTask:
    """The base model, with its U-Net, LoRA layers or the embeddings of a new word as trainable parameters."""
    exact = config.method in ("full", "dora")  # DoRA's magnitudes are norms of the weights
    give = fill if exact else partial(fill_frozen, precision=config.run.mixed_precision)
    source = open_base_model(config.base, OpenOptions(**config.base_options.model_dump()))
    unet_last = UNetLast(give)
    parts = read_pipeline(source, torch.float32, give if config.prior else unet_last)
    more = prior_rows(parts, config, config.prior, folder) if config.prior else []

    def load() -> None:
        unet_last.load()
        if config.method == "full":
            parts.denoiser.requires_grad_(True)
        elif config.method in ("lora", "dora"):
            add_lora(parts, config.rank, config.method == "dora", config.text_encoder)
            cast_trained(parts.denoiser)

    if config.method == "textual_inversion":
        return _inversion_task(config, folder, parts, load)
    write = write_pipeline if config.method == "full" else partial(save_lora, trigger=config.data.prefix)
    return DenoiserTask(config, folder, parts, write, more, config.text_encoder, load)


def _inversion_task(
    config: FineTuneConfig, folder: RunFolder, parts: Components, load: Callable[[], None]
) -> DenoiserTask:
    token = config.data.prefix
    rows = add_token(parts.text, token, config.vectors, config.init_word)

    def write(_: Components, folder: Path) -> None:
        save_learned(rows, token, folder)

    return DenoiserTask(config, folder, parts, write, trains_text=True, load=load)
