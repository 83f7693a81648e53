"""Read LoRA files: every tensor and every setting is used, or rejected by name."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentdiff.checkpoints.lora_deltas import KINDS, Delta, is_complete, rank_of
from latentdiff.checkpoints.lora_names import normalise
from latentdiff.checkpoints.single_file import read_contents
from latentdiff.checkpoints.tensor_files import READ_ERRORS, damaged, open_tensor_file, problem_of
from latentdiff.errors import CheckpointError
from latentdiff.files import finished_files, read_json

FILE = "pytorch_lora_weights.safetensors"
KOHYA = "kohya.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
HEADER_CONFIG = "lora_adapter_metadata"  # diffusers: peft's settings, by part
PARTS = ("unet", "text_encoder", "text_encoder_2")
PEFT_ALPHA = PEFT_RANK = 8  # defaults of omitted settings
# Settings of peft that only affect training, or that are read below.
TRAINING_ONLY = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "lora_dropout",
    "init_lora_weights", "init_weights", "rank_dropout", "module_dropout", "rank_dropout_scale", "eva_config",
    "decompose_both", "decompose_factor", "use_effective_conv2d", "runtime_config", "ensure_weight_tying",
    "r", "lora_alpha", "alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias", "megatron_core",
    "qalora_group_size",
}  # fmt: skip
METHODS = ("LORA", "LOHA", "LOKR")
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that changed the base weights


@dataclass(frozen=True)
class LoraFile:
    """The deltas of a file by its names of the layers, and its metadata."""

    path: Path
    deltas: Mapping[str, Delta]
    metadata: Mapping[str, str]


def find_lora(path: Path) -> Path:
    """The LoRA file at `path`, which may be a folder. Raises CheckpointError."""
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a LoRA file or the folder that finetune wrote")
    known = (path / FILE, path / "model" / FILE, path / PEFT_FILE)
    if (found := next((file for file in known if file.is_file()), None)) is not None:
        return found
    others = finished_files(path, "*.safetensors")
    if len(others) > 1:
        raise CheckpointError(f"{path} contains {len(others)} files, {others[0].name} first; pass the one to load")
    if others:
        return others[0]
    raise CheckpointError(f"{path} contains no LoRA; give a .safetensors file or the folder that finetune wrote")


def read_lora(path: Path, allow_pickle: bool = False) -> LoraFile:
    """Read a file or folder. Raises CheckpointError naming the first unsupported tensor or setting."""
    file = find_lora(path)
    opened = open_tensor_file(file, allow_pickle)
    if (kind := read_contents(file, opened).kind) != "no model":
        raise CheckpointError(f"{file} is {kind}, not a LoRA; pass models by --model, --vae or --unet")
    configs = _peft_configs(file, opened.metadata)
    grouped: dict[str, dict[str, str]] = {}
    for key in opened.shapes:
        name, kind = _split(key, file)
        kinds = grouped.setdefault(name, {})
        if kind in kinds:
            raise CheckpointError(f"{file}: {kinds[kind][:80]} and {key[:80]} are the same tensor; remove one of them")
        kinds[kind] = key
    deltas = {}
    for name, kinds in grouped.items():
        if not is_complete(set(kinds)):
            raise CheckpointError(f"{file}: the tensors of {name[:80]} are incomplete ({', '.join(sorted(kinds))})")
        try:
            tensors = {kind: opened.get(key) for kind, key in kinds.items()}
        except READ_ERRORS as error:
            raise damaged(file, error) from error
        deltas[name] = _delta(file, name, tensors, configs)
    if not deltas:
        raise CheckpointError(f"{file} contains no LoRA; give a file written by a training program")
    return LoraFile(file, deltas, opened.metadata)


def _split(key: str, file: Path) -> tuple[str, str]:
    """(layer, kind of tensor). Raises CheckpointError for an unknown kind."""
    for ending, kind in KINDS.items():
        if key.endswith(f".{ending}"):
            return normalise(key.removesuffix(f".{ending}")), kind
    for ending, kind in (("_lora.down.weight", "down"), ("_lora.up.weight", "up")):
        if key.endswith(ending):
            return normalise(key.removesuffix(ending) + "_lora"), kind
    raise CheckpointError(
        f"{file}: tensor {key[:120]} does not belong to a supported kind of LoRA; convert the file first"
    )


def _delta(file: Path, name: str, tensors: dict[str, Tensor], configs: Mapping[str, dict[str, Any]]) -> Delta:
    alpha = tensors.pop("alpha", None)
    rank: float | None = rank_of(tensors)
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{file}: {name[:80]}.alpha must be one number, not {list(alpha.shape)}")
    for kind, tensor in tensors.items():
        if (problem := problem_of(tensor)) is not None:
            raise CheckpointError(f"{file}: {kind} of {name[:80]} {problem}; use another file")
    if any(tensor.ndim == 0 or 0 in tensor.shape for tensor in tensors.values()):
        raise CheckpointError(f"{file}: a tensor of {name[:80]} is empty; download the file again")
    config = configs.get(name.split(".")[0], configs.get("", None))
    if rank is None:
        if config is None or not {"k1", "k2"} <= tensors.keys():
            return Delta(tensors, 1.0)  # a full difference, or LyCORIS' Kronecker product of whole factors
        rank = _config_rank(config, name, file)
    said = None if config is None else _alpha(config, name, file)
    value = float(alpha if alpha is not None else rank if said is None else said)
    if not math.isfinite(value):
        raise CheckpointError(f"{file}: {name[:80]}.alpha={value} must be a finite number")
    stabilised = bool(config and config.get("use_rslora"))
    return Delta(tensors, value / (math.sqrt(rank) if stabilised else rank))


def _peft_configs(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """peft's settings by component; the name is empty for settings that state no component and apply to all layers."""
    found: dict[str, dict[str, Any]] = {}
    config_file = file.parent / PEFT_CONFIG
    if file.name == PEFT_FILE and config_file.is_file():
        found[""] = found["base_model"] = read_json(config_file)
        _check_config(found[""], str(config_file))
    if (text := metadata.get(HEADER_CONFIG)) is not None:
        where = f"{file}: {HEADER_CONFIG}"
        by_part = _header_configs(text, where)
        for part, config in by_part.items():
            _check_config(config, f"{file}: {part}" if part else where)
        found |= by_part
    return found


def _header_configs(text: str, where: str) -> dict[str, dict[str, Any]]:
    """The settings that diffusers stores in a file's header: with a part as prefix, or without for a U-Net alone."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} in its header is not JSON ({str(error)[:80]})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} contains {type(parsed).__name__}, not settings by name")
    found: dict[str, dict[str, Any]] = {}
    for key, value in parsed.items():
        part, dot, setting = key.partition(".")
        if dot and part not in PARTS:
            raise CheckpointError(f"{where} has settings of {part[:40]!r}; only {', '.join(PARTS)} are supported")
        found.setdefault(part if dot else "", {})[setting if dot else key] = value
    return found


def _check_config(config: dict[str, Any], where: str) -> None:
    """Raise CheckpointError for an unsupported setting that would change the weights."""
    method = config.get("peft_type") or "LORA"
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise CheckpointError(f"{where}.peft_type={str(method)[:40]!r} is not supported; only {', '.join(METHODS)} are")
    if str(config.get("bias") or "none") != "none":
        raise CheckpointError(f"{where}.bias={str(config['bias'])[:40]!r} is not supported; only 'none' is")
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(CHANGED_BASE):
        raise CheckpointError(f"{where}.init_lora_weights={initial[:40]!r} changed the base weights; convert it first")
    for key, value in config.items():
        if key not in TRAINING_ONLY and value not in (None, False, {}, []):
            raise CheckpointError(f"{where}.{key}={str(value)[:40]} is not supported; convert the file first")
    for key in ("r", "lora_alpha", "alpha"):
        if config.get(key) is not None:
            _number(config[key], f"{where}.{key}")
    for key in ("use_rslora", "use_dora", "lora_bias"):
        if not isinstance(config.get(key, False), bool | None):
            raise CheckpointError(f"{where}.{key}={str(config[key])[:40]!r} must be true or false")
    for key in ("alpha_pattern", "rank_pattern"):
        _check_pattern(config.get(key), f"{where}.{key}")


def _check_pattern(patterns: Any, where: str) -> None:
    """Raise CheckpointError unless the value maps names of layers to numbers."""
    if patterns is not None and not isinstance(patterns, dict):
        raise CheckpointError(f"{where} contains {type(patterns).__name__}, not names and numbers")
    for pattern, value in (patterns or {}).items():
        _number(value, f"{where}.{pattern[:40]}")
        if not re.fullmatch(r"\^?[\w.]+\$?", pattern):
            raise CheckpointError(f"{where} has the expression {pattern[:40]!r}; only names are supported")


def _alpha(config: dict[str, Any], name: str, file: Path) -> float:
    """peft's alpha of a layer."""
    common = config.get("lora_alpha", config.get("alpha"))
    found = _by_pattern(config.get("alpha_pattern"), name, PEFT_ALPHA if common is None else common)
    return _number(found, f"{file}: alpha of {name[:80]}")


def _config_rank(config: dict[str, Any], name: str, file: Path) -> float:
    """peft's rank of a layer whose tensors do not determine it."""
    rank = _number(_by_pattern(config.get("rank_pattern"), name, config.get("r", PEFT_RANK)), f"{file}: rank")
    if rank < 1:
        raise CheckpointError(f"{file}: the rank of {name[:80]} is {rank:g}; it must be at least 1")
    return rank


def _by_pattern(patterns: Any, name: str, common: Any) -> Any:
    """The value of the first pattern that matches the end of a layer's name, else the default."""
    for pattern, value in (patterns or {}).items():
        plain = pattern.removeprefix("^").removesuffix("$")
        if name == plain or name.endswith(f".{plain}"):
            return value
    return common


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise CheckpointError(f"{where}={str(value)[:40]!r} must be a number below a million")
    return float(value)
