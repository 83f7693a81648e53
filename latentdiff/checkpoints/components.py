"""Open the components of a pipeline in any layout, load their weights, and write them as a folder."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentdiff.checkpoints.families import SD1, XL, family_of
from latentdiff.checkpoints.folder import (
    GENERATION,
    check_tensors,
    folder_source,
    text_files,
    unet_files,
    vae_files,
    write_model,
    write_text_encoder,
)
from latentdiff.checkpoints.locate_model import has_folder, locate
from latentdiff.checkpoints.model_source import ModelSource, NetworkFiles, OpenOptions, check_counts, text_encoder_names
from latentdiff.checkpoints.pipeline_index import INDEX, pipeline_index
from latentdiff.checkpoints.single_file import read_contents, single_file_source, unet_network, vae_network
from latentdiff.checkpoints.tensor_files import open_tensor_file
from latentdiff.checkpoints.tensor_locations import TensorLocation, read_tensors
from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import IdentityVAEConfig, UNetConfig, side_multiple
from latentdiff.errors import CheckpointError, InputError
from latentdiff.files import write_json
from latentdiff.models.conditioning import DenoisingNetwork
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import VAE, AutoencoderKL, IdentityVAE
from latentdiff.sampling.schedule import Schedule
from latentdiff.text.clip import CLIPTextModel
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.text.tokenizer import read_tokenizer

Fill = Callable[[nn.Module, dict[str, TensorLocation], torch.dtype], None]


@dataclass(frozen=True)
class Components:
    """The components of a pipeline and its default sampling settings.

    zero_empty_prompt: as in SDXL, a missing negative prompt is replaced by zeros. source: the files that the weights
    come from; None for a model created in memory.
    """

    denoiser: DenoisingNetwork
    vae: VAE
    text: TextConditioner
    schedule: Schedule
    zero_empty_prompt: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    source: ModelSource | None = None


@dataclass(frozen=True)
class DatasetLimits:
    """What a model requires of a dataset: its resolution, the multiple that sides must be of, and its tokenizers."""

    resolution: int
    multiple: int
    text: TextConditioner


def open_model(path_or_id: str | Path | None, options: OpenOptions = OpenOptions()) -> ModelSource:  # noqa: B008
    """Open a model given by a folder, single file or hub id `owner/name[@revision]`; the bundled model for None.

    Configs are read and validated, weights are not read yet. Raises CheckpointError, and InputError for a variant
    without an effect.
    """
    path = locate(path_or_id, options.variant)
    source = folder_source(path, options) if path.is_dir() else single_file_source(path, options)
    if options.vae is not None:
        source = replace(source, vae=open_vae(options.vae, options, source.unet.config))
    if options.unet is not None:
        source = replace(source, unet=open_unet(options.unet, options))
    if options.variant and not has_folder(path, options.vae, options.unet):
        raise InputError(f"variant={options.variant!r} is of the files in a folder, and {path} is a file; omit it")
    _check_widths(source)
    return source


def _check_widths(source: ModelSource) -> None:
    """Raise CheckpointError unless the output width of each network matches the input width of the next."""
    unet, vae, texts = source.unet.config, source.vae.config, [files.config for files in source.text_encoders]
    if not texts:
        raise CheckpointError(f"{source.path} has no text encoder; give a text-to-image model")
    pairs = [
        (source.vae.where, "latent channels", vae.latent_channels, unet.out_channels),
        (
            source.text_encoders[0].where,
            "numbers per token",
            sum(t.hidden_size for t in texts),
            unet.cross_attention_dim,
        ),
    ]
    if unet.addition_embed_type is not None:
        sizes = unet.projection_class_embeddings_input_dim - texts[-1].projection_dim
        # 6 numbers are sizes and crop; with an aesthetic score there are 5
        allowed = {count * unet.addition_time_embed_dim for count in (5, 6)}
        if sizes not in allowed or not texts[-1].with_projection:
            raise CheckpointError(f"{source.unet.where}: projection_class_embeddings_input_dim="
                                  f"{unet.projection_class_embeddings_input_dim} does not match the text encoder; "
                                  "use files of one model")  # fmt: skip
    for where, what, found, wanted in pairs:
        if found != wanted:
            raise CheckpointError(f"{where} has {found} {what}, the U-Net reads {wanted}; use files of one model")


def open_vae(path: str | Path, options: OpenOptions = OpenOptions(), unet: UNetConfig | None = None) -> NetworkFiles:  # noqa: B008
    """Open a VAE given by its folder, a model's folder, a single file of a VAE or of a model, or a hub id.

    unet: config of the model's U-Net, which determines the scale of latents if a file contains only weights.
    """
    place = locate(path, options.variant)
    if place.is_dir():
        return vae_files(place / "vae" if (place / "vae").is_dir() else place, options)
    opened = open_tensor_file(place, options.allow_pickle)
    contents = read_contents(place, opened)
    if contents.vae is None:
        raise CheckpointError(f"{place} contains {contents.kind}, not a VAE; give a VAE or a model with one")
    if contents.unet is not None:
        return vae_network(place, contents.vae, family_of({k: t.shape for k, t in contents.unet.items()}))
    return vae_network(place, contents.vae, XL if unet is not None and unet.addition_embed_type else SD1)


def open_unet(path: str | Path, options: OpenOptions = OpenOptions()) -> NetworkFiles:  # noqa: B008
    """Open a U-Net given by its folder, a model's folder, or a single file, including GGUF."""
    place = locate(path, options.variant)
    if place.is_dir():
        return unet_files(place / "unet" if (place / "unet").is_dir() else place, options)
    contents = read_contents(place, open_tensor_file(place, options.allow_pickle))
    if contents.unet is None:
        raise CheckpointError(f"{place} contains {contents.kind}, not a U-Net; give a U-Net or a model with one")
    return unet_network(place, contents.unet, family_of({k: t.shape for k, t in contents.unet.items()}))


def fill(model: nn.Module, places: dict[str, TensorLocation], dtype: torch.dtype) -> None:
    """Load the weights of a model on the meta device, a few at a time."""
    model.load_state_dict(dict(zip(places, read_tensors(places.values(), dtype), strict=True)), assign=True)


def read_pipeline(source: ModelSource | Path, dtype: torch.dtype, give: Fill = fill) -> Components:
    """Build all components; `give` loads the weights of a network, by default `fill`.

    Raises CheckpointError naming the file that is missing or damaged.
    """
    source = open_model(source) if isinstance(source, Path) else source
    return Components(
        denoiser=build(source.unet, dtype, give),
        vae=build(source.vae, dtype, give),
        text=read_text(source, dtype, give),
        schedule=Schedule(source.schedule),
        zero_empty_prompt=source.zero_empty_prompt,
        generation=source.generation,
        source=source,
    )


def read_limits(source: ModelSource | Path) -> DatasetLimits:
    """The limits of a model; reads no weights."""
    source = open_model(source) if isinstance(source, Path) else source
    unet, vae = source.unet.config, source.vae.config
    text = TextConditioner(source.read_tokenizers(), [])
    return DatasetLimits(unet.sample_size * vae.downscale, side_multiple(unet, vae), text)


def read_text(source: ModelSource, dtype: torch.dtype = torch.float32, give: Fill = fill) -> TextConditioner:
    """The text encoders of a model with their tokenizers. Raises CheckpointError if the two do not match."""
    tokenizers = source.read_tokenizers()
    for files, tokenizer in zip(source.text_encoders, tokenizers, strict=True):
        config = files.config
        if tokenizer.model_max_length > config.max_position_embeddings:
            raise CheckpointError(
                f"{files.where}: the tokenizer's texts have {tokenizer.model_max_length} tokens, the encoder reads "
                f"max_position_embeddings={config.max_position_embeddings}; use the tokenizer of this model"
            )
        if tokenizer.largest_id >= config.vocab_size:
            raise CheckpointError(
                f"{files.where}: the tokenizer has token {tokenizer.largest_id}, the encoder's vocab_size is "
                f"{config.vocab_size}; use the tokenizer of this model"
            )
    lengths = [tokenizer.model_max_length for tokenizer in tokenizers]
    if len(set(lengths)) > 1:
        raise CheckpointError(
            f"{source.path}: the texts of the tokenizers have {' and '.join(map(str, lengths))} tokens, but the text "
            "encoders' outputs are joined token by token; use the tokenizers of this model"
        )
    return TextConditioner(tokenizers, [build(files, dtype, give) for files in source.text_encoders])


def read_text_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> TextConditioner:
    """The text encoder of a training run: a folder with `text_encoder/` and `tokenizer/`."""
    encoder = build(text_files(folder / "text_encoder", "CLIPTextModel"), dtype)
    return TextConditioner([read_tokenizer(folder / "tokenizer")], [encoder])


def read_vae(path: Path, dtype: torch.dtype = torch.float32) -> VAE:
    """Load a VAE from its folder or a single file; it is in float32 if its config requires that."""
    vae: VAE = build(open_vae(path), dtype)
    return vae


def build(files: NetworkFiles, dtype: torch.dtype, give: Fill = fill) -> Any:
    """Build a network on the meta device, check it against the tensors of its file, and load them with `give`."""
    tensors = files.find()
    check_counts(files, tensors)
    with torch.device("meta"):
        model = _network_class(files.config)(files.config)
    check_tensors(model, tensors, files.where)
    give(model, tensors, torch.float32 if getattr(files.config, "force_upcast", False) else dtype)
    return model.eval().requires_grad_(False)


def _network_class(config: Any) -> Any:
    if isinstance(config, UNetConfig):
        return UNet2DConditionModel
    if isinstance(config, IdentityVAEConfig):
        return IdentityVAE
    return CLIPTextModel if hasattr(config, "vocab_size") else AutoencoderKL


def write_pipeline(parts: Components, folder: Path) -> None:
    """Write all components in diffusers' layout, `model_index.json` last. diffusers cannot open pixel-space models."""
    write_model(parts.denoiser, parts.denoiser.config.write(), folder / "unet")
    write_model(parts.vae, parts.vae.config.write(), folder / "vae")
    write_json(folder / "scheduler" / "scheduler_config.json", parts.schedule.config.write())
    names = text_encoder_names(parts.denoiser.config, len(parts.text.encoders))
    for name, encoder, tokenizer in zip(names, parts.text.encoders, parts.text.tokenizers, strict=True):
        write_text_encoder(encoder, folder / name)
        tokenizer.save(folder / name.replace("text_encoder", "tokenizer"))
    if parts.generation != GenerationConfig():
        write_json(folder / GENERATION, parts.generation.model_dump(mode="json"))
    identity = isinstance(parts.vae, IdentityVAE)
    scheduler = parts.schedule.config.class_name
    index = pipeline_index(parts.denoiser.config, names, scheduler, parts.zero_empty_prompt, identity)
    write_json(folder / INDEX, index)
