"""Model folders in diffusers' layout: found, checked, read and written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from latentdiff.checkpoints.tensors import TensorLocation, find_tensors, read_tensors
from latentdiff.config.model import (
    CLIPTextConfig,
    GenerationConfig,
    IdentityVAEConfig,
    ScheduleConfig,
    UNetConfig,
    VAEConfig,
    side_multiple,
)
from latentdiff.errors import CheckpointError, did_you_mean
from latentdiff.files import read_json, write_json
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import VAE, AutoencoderKL, IdentityVAE
from latentdiff.samplers import SAMPLERS
from latentdiff.schedule import Schedule
from latentdiff.text.clip import CLIPTextModel, current_key
from latentdiff.text.conditioning import TextConditioner
from latentdiff.text.tokenizer import read_tokenizer

Fill = Callable[[nn.Module, dict[str, TensorLocation], torch.dtype], None]
WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model", "model"
GENERATION = "generation_config.json"
KINDS = ("json", "txt", "safetensors")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
HUB_FILES = ["model_index.json", GENERATION, *(f"{part}/*.{kind}" for part in PARTS for kind in KINDS)]
VARIANTS = ["*.fp16.*", "*.non_ema.*"]  # of the same weights, had where there are no others
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Components:
    """What a pipeline is made of, and how it is usually called.

    zero_empty_prompt: SDXL's habit of zeros where no negative prompt is given.
    """

    unet: UNet2DConditionModel
    vae: VAE
    text: TextConditioner
    schedule: Schedule
    zero_empty_prompt: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)


def fill(model: nn.Module, places: dict[str, TensorLocation], dtype: torch.dtype) -> None:
    """Give a model without memory its weights, read one after the other."""
    model.load_state_dict(dict(zip(places, read_tensors(places.values(), dtype), strict=True)), assign=True)


def bundled_model() -> Path:
    """The folder of the model that ships with the package, in an installed wheel or in a source checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "weights" / "emoji", package.parent / "weights" / "emoji"):
        if folder.is_dir():
            return folder
    raise CheckpointError(f"the bundled model is not at {package / 'weights' / 'emoji'}; reinstall latentdiff")


def locate(path_or_id: str | Path | None) -> Path:
    """The local folder of a model: the bundled one for None, a path, or a hub id `owner/name`, which is downloaded.

    Raises CheckpointError when it is none of these. A path that exists is never looked up anywhere else.
    """
    if path_or_id is None:
        return bundled_model()
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file, not a diffusers model folder; give the folder with model_index.json")
    parts = str(path_or_id).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise CheckpointError(f"{path_or_id} does not exist; give a model folder, or a hub id like owner/name")
    return _download(str(path_or_id))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES, ignore_patterns=VARIANTS))
        if not any((folder / "unet").glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
        return folder
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{hub_id} is no folder here and could not be had from the hub ({reason}); check it"
        ) from error


def read_pipeline(folder: Path, dtype: torch.dtype, give: Fill = fill) -> Components:
    """Read every component of a pipeline folder; `give` says how a model gets its weights.

    Raises CheckpointError naming the file that is missing or damaged.
    """
    index = read_json(folder / "model_index.json", "it is no model folder; give one that a pipeline was saved to")
    unet_config = UNetConfig.read(read_json(folder / "unet" / "config.json"), "unet/config.json")
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    return Components(
        unet=_load(UNet2DConditionModel, unet_config, folder / "unet", dtype, give),
        vae=read_vae(folder / "vae", dtype, give),
        text=read_text(folder, index, dtype, give),
        schedule=Schedule(ScheduleConfig.read(schedule, "scheduler/scheduler_config.json")),
        zero_empty_prompt=unet_config.addition_embed_type is not None
        and index.get("force_zeros_for_empty_prompt", True),
        generation=_read_generation(folder / GENERATION),
    )


def _read_generation(path: Path) -> GenerationConfig:
    """A model's own settings, or what is usual. Raises CheckpointError for a sampler that is none."""
    if not path.exists():
        return GenerationConfig()
    named = {key: value for key, value in read_json(path).items() if value is not None}
    found = GenerationConfig.read(named, str(path))
    if found.sampler not in SAMPLERS:
        raise CheckpointError(f"{path}: sampler={found.sampler!r} is unknown; {did_you_mean(found.sampler, SAMPLERS)}")
    return found


@dataclass(frozen=True)
class Limits:
    """What a model takes: the size it was trained for, what sides are multiples of, and its tokenizers."""

    resolution: int
    multiple: int
    text: TextConditioner


def read_limits(folder: Path) -> Limits:
    """A model's limits, read without any weight."""
    index = read_json(folder / "model_index.json", "it is no model folder; give one that a pipeline was saved to")
    unet = UNetConfig.read(read_json(folder / "unet" / "config.json"), "unet/config.json")
    vae = read_vae_config(folder / "vae")
    names = [name for name in ("tokenizer", "tokenizer_2") if index.get(name, [None, None])[1]]
    text = TextConditioner([read_tokenizer(folder / name) for name in names], [])
    return Limits(unet.sample_size * vae.downscale, side_multiple(unet, vae), text)


def read_vae(folder: Path, dtype: torch.dtype = torch.float32, give: Fill = fill) -> VAE:
    """Read one VAE folder: `config.json` and its safetensors; in float32 where the config asks for it."""
    config = read_vae_config(folder)
    kind = IdentityVAE if isinstance(config, IdentityVAEConfig) else AutoencoderKL
    return _load(kind, config, folder, torch.float32 if config.force_upcast else dtype, give)


def read_vae_config(folder: Path) -> VAEConfig | IdentityVAEConfig:
    """The config of one VAE folder, or of the identity that a model of pixels has there."""
    raw = read_json(folder / "config.json")
    kind = IdentityVAEConfig if raw.get("_class_name") == IdentityVAE.__name__ else VAEConfig
    return kind.read(raw, str(folder / "config.json"))


def read_text(
    folder: Path, index: dict[str, Any], dtype: torch.dtype = torch.float32, give: Fill = fill
) -> TextConditioner:
    """Read `text_encoder/` and `tokenizer/`, and `text_encoder_2/` and `tokenizer_2/` where the index names them."""
    names = [name for name in ("text_encoder", "text_encoder_2") if index.get(name, [None, None])[1]]
    encoders = [_read_encoder(folder / name, index[name][1], dtype, give) for name in names]
    tokenizers = [read_tokenizer(folder / name.replace("text_encoder", "tokenizer")) for name in names]
    return TextConditioner(tokenizers, encoders)


def _read_encoder(folder: Path, class_name: str, dtype: torch.dtype, give: Fill) -> CLIPTextModel:
    if class_name not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise CheckpointError(f"{folder}: {class_name} is not supported; only CLIP text encoders are")
    raw = read_json(folder / "config.json") | {"architectures": [class_name]}
    config = CLIPTextConfig.read(raw, str(folder / "config.json"))
    return _load(CLIPTextModel, config, folder, dtype, give, TEXT_WEIGHTS, current_key)


def _load(
    model_class: Any,
    config: Any,
    folder: Path,
    dtype: torch.dtype,
    give: Fill = fill,
    stem: str = WEIGHTS,
    rename: Callable[[str], str | None] | None = None,
) -> Any:
    """Build the model without memory, then have `give` give it the file's tensors, which fit it."""
    with torch.device("meta"):
        model = model_class(config)
    places = find_tensors(folder, stem, rename or _new_key)
    _check(model, places, folder)
    give(model, places, dtype)
    return model.eval().requires_grad_(False)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a component's weights into a model that a run's config describes. Raises CheckpointError if they differ."""
    places = find_tensors(folder, WEIGHTS, _new_key)
    _check(model, places, folder, "the run's config")
    model.load_state_dict(dict(zip(places, read_tensors(places.values(), torch.float32), strict=True)))


def _check(model: nn.Module, found: dict[str, TensorLocation], folder: Path, by: str = "its config.json") -> None:
    expected = {key: value.shape for key, value in model.state_dict().items()}
    for key in expected.keys() ^ found.keys():
        word = "lacks" if key in expected else "has an unknown"
        raise CheckpointError(f"{folder}: the weights {word} tensor {key}; they do not belong to {by}")
    for key, shape in expected.items():
        if found[key].shape != shape:
            raise CheckpointError(
                f"{folder}: {key} is {list(found[key].shape)}, {list(shape)} by {by}; the two must be of one model"
            )


def _new_key(key: str) -> str:
    """VAEs of 2022 call the projections of their attention by other names."""
    head, _, last = key.rpartition(".")
    parent, _, name = head.rpartition(".")
    return f"{parent}.{OLD_ATTENTION[name]}.{last}" if name in OLD_ATTENTION else key


def write_pipeline(parts: Components, folder: Path) -> None:
    """Write every component so that diffusers opens the folder, if it is latent; `model_index.json` comes last."""
    write_model(parts.unet, parts.unet.config.write(), folder / "unet")
    write_model(parts.vae, parts.vae.config.write(), folder / "vae")
    write_json(folder / "scheduler" / "scheduler_config.json", parts.schedule.config.write())
    names = ["", "_2"][: len(parts.text.encoders)]
    for name, encoder, tokenizer in zip(names, parts.text.encoders, parts.text.tokenizers, strict=True):
        write_text_encoder(encoder, folder / f"text_encoder{name}")
        tokenizer.save(folder / f"tokenizer{name}")
    if parts.generation != GenerationConfig():
        write_json(folder / GENERATION, parts.generation.model_dump(mode="json"))
    write_json(folder / "model_index.json", _index(parts))


def write_model(model: nn.Module, config: dict[str, Any], folder: Path, stem: str = WEIGHTS) -> None:
    """`config.json` and safetensors of one network."""
    write_json(folder / "config.json", config)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def write_text_encoder(encoder: Any, folder: Path) -> None:
    """A CLIPTextModel as transformers opens it, or with a projection its CLIPTextModelWithProjection."""
    write_model(encoder, encoder.config.write(), folder, TEXT_WEIGHTS)


def _index(parts: Components) -> dict[str, Any]:
    xl = len(parts.text.encoders) == 2
    text = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    if xl:
        text |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
        text |= {"tokenizer_2": ["transformers", "CLIPTokenizer"]}
    only_sd = {"safety_checker": [None, None], "requires_safety_checker": False}
    return {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        **({"force_zeros_for_empty_prompt": parts.zero_empty_prompt} if xl else only_sd),
        "scheduler": ["diffusers", "DDIMScheduler"],
        **text,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["latentdiff" if isinstance(parts.vae, IdentityVAE) else "diffusers", type(parts.vae).__name__],
    }
