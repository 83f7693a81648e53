"""LoRAs of a model: several at once, each with a weight for U-Net and text encoders, changed and removed to the bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.lora_deltas import Delta
from latentdiff.checkpoints.lora_file import FILE, KOHYA, PEFT_FILE, read_lora
from latentdiff.checkpoints.lora_names import aliases, layers_of
from latentdiff.checkpoints.tensors import TensorLocation, read_tensor
from latentdiff.errors import CheckpointError, InputError, did_you_mean

Weight = float | tuple[float, float]
Key = tuple[str, str]  # part and layer


@dataclass(frozen=True)
class Adapter:
    """A LoRA that fits a model. `unmatched`: layers of the file that the model does not have."""

    name: str
    path: Path
    deltas: Mapping[Key, Delta]
    unmatched: tuple[str, ...]


@dataclass
class Adapters:
    """The adapters of a model and their weights (U-Net, text encoders).

    Weights are never subtracted: a layer is computed from its base weight, read again from the model's files, or from
    a copy where the model was made in memory.
    """

    loaded: dict[str, Adapter] = field(default_factory=dict)
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)
    copies: dict[tuple[str, str, str], Tensor] = field(default_factory=dict)

    def read(self, parts: Components, path: Path, name: str | None = None, allow_pickle: bool = False) -> Adapter:
        """Read a LoRA and match it to the model's layers; nothing is changed yet.

        Raises CheckpointError for a file that belongs to another kind of model, InputError for a name in use.
        """
        file = read_lora(path, allow_pickle)
        name = name if name is not None else default_name(file.path)
        if name in self.loaded:
            raise InputError(f"a LoRA named {name!r} is loaded already; unload it first, or give another name=")
        known, layers = aliases(parts), layers_of(parts)
        deltas = {known[key]: delta for key, delta in file.deltas.items() if key in known}
        if not deltas:
            first = next(iter(file.deltas))
            raise CheckpointError(f"{file.path} matches none of this model's layers ({first[:80]} first); "
                                  "it was made for another kind of model")  # fmt: skip
        for key, delta in deltas.items():
            _check_fit(file.path, key, delta, layers[key])
        return Adapter(name, file.path, deltas, tuple(sorted(key for key in file.deltas if key not in known)))

    def add(self, adapter: Adapter, weight: Weight) -> None:
        """Keep an adapter that was read, at a weight; `apply` its layers afterwards."""
        pair = weight_pair(weight, adapter.name)
        self.loaded[adapter.name] = adapter
        self.weights[adapter.name] = pair

    def affected(self, names: set[str] | None = None) -> set[Key]:
        """Layers that these adapters change, by default all that are loaded."""
        chosen = self.loaded.values() if names is None else [self.loaded[name] for name in names & self.loaded.keys()]
        return {key for adapter in chosen for key in adapter.deltas}

    def check_weights(self, weights: Mapping[str, Weight]) -> dict[str, tuple[float, float]]:
        """Weights as pairs. Raises InputError for a name that is not loaded, or what is not a number."""
        checked = {}
        for name, value in weights.items():
            if name not in self.loaded:
                raise InputError(f"no LoRA named {name!r} is loaded; {did_you_mean(name, self.loaded)}")
            checked[name] = weight_pair(value, name)
        return checked

    @torch.no_grad()
    def apply(self, parts: Components, keys: set[Key]) -> None:
        """Compute these layers from their base weights and the adapters' present weights, in place."""
        layers = layers_of(parts)
        for key in keys:
            for kind in ("weight", "bias"):
                if self._touches(key, kind):
                    self._write(parts, key, kind, layers[key])

    def _touches(self, key: Key, kind: str) -> bool:
        if kind == "weight":
            return True
        biases = {"up_bias", "diff_bias"}
        deltas = [adapter.deltas[key] for adapter in self.loaded.values() if key in adapter.deltas]
        return any(biases & delta.tensors.keys() for delta in deltas)

    def _write(self, parts: Components, key: Key, kind: str, layer: nn.Module) -> None:
        target: Tensor = getattr(layer, kind)
        stored = self._base(parts, key, kind, target)
        changes = [change for change in self._changes(key, kind, stored) if change is not None]
        if not changes:
            target.copy_(stored)
            return
        total = stored.float()
        for change in changes:
            total = total + change.view(total.shape)
        target.copy_(total)

    def _changes(self, key: Key, kind: str, stored: Tensor) -> list[Tensor | None]:
        base, found = stored.float(), []
        for name, pair in self.weights.items():
            strength = pair[0] if key[0] == "unet" else pair[1]
            delta = self.loaded[name].deltas.get(key)
            if delta is not None and strength != 0:
                found.append(delta.apply(base, strength) if kind == "weight" else delta.bias(strength))
        return found

    def _base(self, parts: Components, key: Key, kind: str, target: Tensor) -> Tensor:
        """The weight without adapters, as the model's file has it."""
        place = _location(parts, key, kind)
        if place is not None:
            return read_tensor(place)
        copy = self.copies.get((*key, kind))
        if copy is None:  # the first change of a model made in memory
            copy = self.copies[(*key, kind)] = target.detach().to("cpu", copy=True)
        return copy


def _location(parts: Components, key: Key, kind: str) -> TensorLocation | None:
    if parts.source is None:
        return None
    return parts.source.networks()[key[0]].find()[f"{key[1]}.{kind}"]


def default_name(file: Path) -> str:
    """What a LoRA is called without a name: its file, or its folder where the file's name says nothing."""
    generic = file.name in (FILE, KOHYA, PEFT_FILE)
    folder = file.parent.parent if generic and file.parent.name == "model" else file.parent
    return folder.name if generic and folder.name else file.stem


def weight_pair(value: Any, name: str) -> tuple[float, float]:
    """(U-Net, text encoders); one number is for both. Raises InputError for anything else."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e4 for one in pair)
    if len(pair) != 2 or not numbers:
        raise InputError(f"the weight of LoRA {name!r} is {value!r}; give a number, or a pair (unet, text encoder)")
    return float(pair[0]), float(pair[1])


def _check_fit(file: Path, key: Key, delta: Delta, layer: nn.Module) -> None:
    weight: Any = layer.weight
    wanted = (len(weight), weight[0].numel())
    try:
        outputs, rest = delta.shape()
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{file}: the tensors of {'.'.join(key)} do not fit together ({error})") from error
    if (outputs, rest or wanted[1]) != wanted:
        raise CheckpointError(
            f"{file} was made for another kind of model: {'.'.join(key)} is {outputs}x{rest} there and "
            f"{wanted[0]}x{wanted[1]} here"
        )
    if {"up_bias", "diff_bias"} & delta.tensors.keys() and getattr(layer, "bias", None) is None:
        raise CheckpointError(f"{file} changes the bias of {'.'.join(key)}, which has none; use its own base model")
    magnitude = delta.tensors.get("magnitude")
    if magnitude is not None and magnitude.numel() not in weight.shape[:2]:
        raise CheckpointError(f"{file}: the magnitude of {'.'.join(key)} has {magnitude.numel()} numbers for a weight "
                              f"of {list(weight.shape)}; use its own base model")  # fmt: skip
