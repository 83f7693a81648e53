"""Read and write model folders in diffusers' layout."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from latentdiff.checkpoints.model_source import ModelSource, NetworkFiles, OpenOptions
from latentdiff.checkpoints.pipeline_index import INDEX, read_index
from latentdiff.checkpoints.single_file import current_vae_key
from latentdiff.checkpoints.tensor_files import INTEGER_TYPES
from latentdiff.checkpoints.tensor_locations import TensorLocation, find_tensors, read_tensors
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import IdentityVAEConfig, UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.errors import CheckpointError, did_you_mean
from latentdiff.files import read_json, write_json
from latentdiff.models.vae import IdentityVAE
from latentdiff.sampling.samplers import SAMPLERS
from latentdiff.text.clip import current_key
from latentdiff.text.tokenizer import CLIPTokenizer, read_tokenizer

WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model", "model"
GENERATION = "generation_config.json"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORK_CLASSES = {
    "UNet2DConditionModel": "a U-Net",
    "AutoencoderKL": "a VAE",
    "IdentityVAE": "a VAE",
    "CLIPTextModel": "a text encoder",
    "CLIPTextModelWithProjection": "a text encoder",
}


def folder_source(folder: Path, options: OpenOptions) -> ModelSource:
    """Open a pipeline folder. Configs are read and validated; weights are located when they are needed.

    Raises CheckpointError naming the file, the key and the rule.
    """
    if not (folder / INDEX).exists() and (kind := network_kind(folder)) is not None:
        option = {"a U-Net": "pass it by --unet", "a VAE": "pass it by --vae"}.get(kind, "give the whole model")
        raise CheckpointError(f"{folder} is {kind}, not a model; {option}")
    index = read_index(folder)
    unet = unet_files(folder / "unet", options)
    schedule = _read_schedule(folder, index.scheduler)
    unused = [f"{name}: not read" for name in index.unused]
    return ModelSource(
        path=folder,
        unet=unet,
        vae=vae_files(folder / "vae", options),
        text_encoders=tuple(text_files(folder / name, kind, options) for name, kind in index.text_encoders.items()),
        read_tokenizers=lambda: [_tokenizer(folder / name) for name in index.text_encoders],
        schedule=schedule,
        zero_empty_prompt=unet.config.addition_embed_type is not None and index.zero_empty_prompt,
        generation=_read_generation(folder / GENERATION, schedule),
        notes=(f"prediction type {schedule.prediction_type}: by {SCHEDULER}", *unused),
    ).with_prediction(options.prediction_type)


def _read_schedule(folder: Path, class_name: str) -> ScheduleConfig:
    """The scheduler's config, read as the class that `model_index.json` names, as diffusers does."""
    raw = read_json(folder / SCHEDULER)
    own = raw.get("_class_name") == class_name
    return ScheduleConfig.read(raw | {"_class_name": class_name}, SCHEDULER if own else str(folder / INDEX))


def _tokenizer(folder: Path) -> CLIPTokenizer:
    return read_tokenizer(folder.with_name(folder.name.replace("text_encoder", "tokenizer")))


def _read_generation(path: Path, schedule: ScheduleConfig) -> GenerationConfig:
    """The model's sampling settings, or the defaults with its scheduler's sampler.

    If that sampler is not implemented, the setting is None and the user must choose one. Raises CheckpointError for an
    unknown sampler.
    """
    named = {"sampler": "" if schedule.unsupported else schedule.sampler}
    if path.exists():
        named |= {key: value for key, value in read_json(path).items() if value is not None}
    found = GenerationConfig.read(named, str(path))
    if found.sampler and found.sampler not in SAMPLERS:
        raise CheckpointError(f"{path}: sampler={found.sampler!r} is unknown; {did_you_mean(found.sampler, SAMPLERS)}")
    return found


def network_kind(folder: Path) -> str | None:
    """The kind of network in a folder; None for other folders."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    architectures = config.get("architectures")
    named = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    return next((kind for name, kind in NETWORK_CLASSES.items() if name in named), None)


def network_files(folder: Path, kind: str, options: OpenOptions) -> NetworkFiles:
    """The network in a folder, whose kind is that of `network_kind`."""
    if kind == "a U-Net":
        return unet_files(folder, options)
    return vae_files(folder, options) if kind == "a VAE" else text_files(folder, "CLIPTextModel", options)


def unet_files(folder: Path, options: OpenOptions = OpenOptions()) -> NetworkFiles:  # noqa: B008
    """Open the folder of a U-Net."""
    raw = read_json(folder / "config.json")
    return _network(folder, UNetConfig.read(raw, str(folder / "config.json")), WEIGHTS, str, options)


def vae_files(folder: Path, options: OpenOptions = OpenOptions()) -> NetworkFiles:  # noqa: B008
    """Open the folder of a VAE."""
    return _network(folder, read_vae_config(folder), WEIGHTS, current_vae_key, options)


def text_files(folder: Path, class_name: str, options: OpenOptions = OpenOptions()) -> NetworkFiles:  # noqa: B008
    """Open the folder of a text encoder, of the class named in `model_index.json`."""
    raw = read_json(folder / "config.json") | {"architectures": [class_name]}
    config = CLIPTextConfig.read(raw, str(folder / "config.json"))
    return _network(folder, config, TEXT_WEIGHTS, current_key, options)


def read_vae_config(folder: Path) -> VAEConfig | IdentityVAEConfig:
    """The config in a VAE folder; that of an `IdentityVAE` for pixel-space models."""
    raw = read_json(folder / "config.json")
    kind = IdentityVAEConfig if raw.get("_class_name") == IdentityVAE.__name__ else VAEConfig
    return kind.read(raw, str(folder / "config.json"))


def _network(
    folder: Path, config: Any, stem: str, rename: Callable[[str], str | None], options: OpenOptions
) -> NetworkFiles:
    @cache
    def find() -> dict[str, TensorLocation]:
        return find_tensors(folder, stem, rename, options.variant, options.allow_pickle)

    return NetworkFiles(config, str(folder), find)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a component into a model. Raises CheckpointError if names or shapes differ."""
    places = find_tensors(folder, WEIGHTS, current_vae_key)
    check_tensors(model, places, str(folder), "the run's config")
    model.load_state_dict(dict(zip(places, read_tensors(places.values(), torch.float32), strict=True)))


def check_tensors(model: nn.Module, found: dict[str, TensorLocation], where: str, by: str = "its config.json") -> None:
    """Raise CheckpointError unless the names and shapes of a model's weights and of the tensors are equal."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key in sorted(expected.keys() ^ found.keys()):
        word = "lack" if key in expected else "have an unknown"
        raise CheckpointError(f"{where}: the weights {word} tensor {key[:120]}; they do not belong to {by}")
    for key, shape in expected.items():
        if found[key].shape != shape:
            raise CheckpointError(
                f"{where}: {key} is {list(found[key].shape)}, but {list(shape)} according to {by}; both must belong to "
                "the same model"
            )
        if found[key].type in INTEGER_TYPES:
            raise CheckpointError(
                f"{where}: {key} is stored as {found[key].type}, but weights must be floating-point numbers; use "
                "another file"
            )


def write_model(model: nn.Module, config: dict[str, Any], folder: Path, stem: str = WEIGHTS) -> None:
    """Write `config.json` and the weights of one network."""
    write_json(folder / "config.json", config)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def write_text_encoder(encoder: Any, folder: Path) -> None:
    """Write a text encoder for transformers' CLIPTextModel or, with a projection, CLIPTextModelWithProjection."""
    write_model(encoder, encoder.config.write(), folder, TEXT_WEIGHTS)
