"""The LoRAs of a model: weights for U-Net and text encoders, applied together and removed to the bit."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.lora_deltas import Delta
from latentdiff.checkpoints.lora_names import Key, LayerShape, aliases, layer_shapes
from latentdiff.checkpoints.lora_reader import FILE, KOHYA, PEFT_FILE, read_lora
from latentdiff.checkpoints.tensor_files import tensor_reader
from latentdiff.checkpoints.tensor_locations import Readers, read_tensor
from latentdiff.errors import CheckpointError, InputError, did_you_mean

CACHED_NUMBERS = 2**18  # a megabyte of float32, which stays in a core's cache
Pair = tuple[float, float]  # weights for the U-Net and for the text encoders
Weight = float | Pair


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA that was matched to a model. unmatched: layers in the file that the model does not have."""

    name: str
    path: Path
    deltas: Mapping[Key, Delta]
    unmatched: tuple[str, ...]


class LoraStack:
    """The loaded LoRAs of a model and their weights (U-Net, text encoders).

    Weights are never subtracted: a layer is computed from its base weight, which is read again from the model's files,
    or kept as a copy if the model was created in memory. parts: the model with plain layers.
    """

    def __init__(self, parts: Components) -> None:
        self.loaded: dict[str, LoadedLora] = {}
        self.weights: dict[str, Pair] = {}
        self._shapes = layer_shapes(parts)
        self._config, self._source = parts.denoiser.config, parts.source
        self._copies: dict[tuple[Key, str], Tensor] = {}

    def read(self, path: Path, name: str | None = None, allow_pickle: bool = False) -> LoadedLora:
        """Read a LoRA and match it to the model's layers, without changing the model.

        Raises CheckpointError for a file that belongs to another kind of model, InputError for a name in use.
        """
        file = read_lora(path, allow_pickle)
        name = name if name is not None else default_name(file.path)
        if name in self.loaded:
            raise InputError(f"a LoRA named {name!r} is already loaded; unload it first, or pass another name=")
        known = aliases(self._shapes, self._config)
        deltas = {known[key]: delta for key, delta in file.deltas.items() if key in known}
        if not deltas:
            first = next(iter(file.deltas))[:80]
            raise CheckpointError(
                f"{file.path} matches none of this model's layers, {first} first; it was made for another kind of model"
            )
        for key, delta in deltas.items():
            _check_fit(file.path, key, delta, self._shapes[key])
        return LoadedLora(name, file.path, deltas, tuple(sorted(key for key in file.deltas if key not in known)))

    def add(self, lora: LoadedLora, weight: Weight) -> None:
        """Add a LoRA with a weight; call `apply` for its layers afterwards."""
        pair = weight_pair(weight, lora.name)
        self.loaded[lora.name] = lora
        self.weights[lora.name] = pair

    def remove(self, names: Iterable[str]) -> None:
        """Remove LoRAs whose weight is 0, after that weight was applied."""
        for name in names:
            del self.loaded[name]
            self.weights.pop(name, None)

    def layers_between(self, before: Mapping[str, Pair], after: Mapping[str, Pair]) -> set[Key]:
        """The layers of LoRAs whose weights differ before and after."""
        names = before.keys() | after.keys()
        return {
            key
            for name in names
            for key in self.loaded[name].deltas
            if _strength(before.get(name), key) != _strength(after.get(name), key)
        }

    def check_weights(self, weights: Mapping[str, Weight]) -> dict[str, Pair]:
        """Convert weights to pairs. Raises InputError for unknown names and for values that are not numbers."""
        for name in weights:
            if name not in self.loaded:
                raise InputError(f"no LoRA named {name!r} is loaded; {did_you_mean(name, self.loaded)}")
        return {name: weight_pair(value, name) for name, value in weights.items()}

    @torch.no_grad()
    def apply(self, models: Mapping[str, nn.Module], keys: Iterable[Key]) -> None:
        """Compute these layers from their base weights and the current weights of the LoRAs, in place.

        models: the networks by part, in which these layers are plain.
        """
        readers, buffer = cache(tensor_reader), torch.empty(CACHED_NUMBERS)
        for part, name in sorted(keys):
            layer = models[part].get_submodule(name)
            self._write((part, name), "weight", layer.weight, readers, buffer)
            if self._changes_bias((part, name)):
                self._write((part, name), "bias", layer.bias, readers, buffer)

    def _changes_bias(self, key: Key) -> bool:
        biases = {"up_bias", "diff_bias"}
        deltas = [lora.deltas[key] for lora in self.loaded.values() if key in lora.deltas]
        return any(biases & delta.tensors.keys() for delta in deltas)

    def _write(self, key: Key, kind: str, target: Any, readers: Readers, buffer: Tensor) -> None:
        stored = self._base(key, kind, target, readers)
        active = list(self._active(key))
        if not active:
            target.copy_(stored)
            return
        if kind == "weight" and target.device.type == "cpu":
            factors = [delta.factors(strength) for delta, strength in active]
            if None not in factors:
                add_products(target, stored, cast(list[tuple[Tensor, Tensor]], factors), buffer)
                return
        base = stored.to(target.device, torch.float32)
        total: Tensor | None = None
        for delta, strength in active:
            change = delta.apply(base, strength) if kind == "weight" else delta.bias(base, strength)
            if change is None:
                continue
            change = change.view(base.shape)  # a new tensor
            total = change.add_(base) if total is None else total.add_(change)
        target.copy_(stored if total is None else total)

    def _active(self, key: Key) -> Iterator[tuple[Delta, float]]:
        """The deltas of a layer with weights other than 0, and these weights."""
        for name, pair in self.weights.items():
            strength = _strength(pair, key)
            delta = self.loaded[name].deltas.get(key)
            if delta is not None and strength != 0:
                yield delta, strength

    def _base(self, key: Key, kind: str, target: Tensor, readers: Readers) -> Tensor:
        """The weight without LoRAs, in the dtype of the model's file."""
        if self._source is not None:
            return read_tensor(self._source.networks()[key[0]].find()[f"{key[1]}.{kind}"], readers)
        if (key, kind) not in self._copies:  # the first change of a model that was created in memory
            self._copies[key, kind] = target.detach().to("cpu", copy=True)
        return self._copies[key, kind]


def _strength(pair: Pair | None, key: Key) -> float:
    """The weight that applies to a layer; 0 if the LoRA is not in use."""
    return 0.0 if pair is None else pair[0] if key[0] == "unet" else pair[1]


def add_products(target: Tensor, stored: Tensor, factors: Sequence[tuple[Tensor, Tensor]], buffer: Tensor) -> None:
    """Write `stored` plus the products of the factors to `target`, in float32 and a few rows at a time.

    Rows that fit into the cache take a quarter of the time of complete weights, each of which would need new memory.
    buffer: of float32 numbers, for as many rows as fit.
    """
    width = math.prod(stored.shape[1:])
    if len(buffer) < width:
        buffer = torch.empty(width)
    rows = len(buffer) // width
    for start in range(0, len(stored), rows):
        part = stored[start : start + rows]
        total = buffer[: part.numel()].view(len(part), width).copy_(part.flatten(1))
        for up, down in factors:
            total.addmm_(up[start : start + rows], down)
        target[start : start + rows].copy_(total.view(part.shape))


def default_name(file: Path) -> str:
    """The default name of a LoRA: that of its file, or of its folder if the file has a generic name."""
    generic = file.name in (FILE, KOHYA, PEFT_FILE)
    folder = file.parent.parent if generic and file.parent.name == "model" else file.parent
    return folder.name if generic and folder.name else file.stem


def weight_pair(value: Any, name: str) -> tuple[float, float]:
    """Weights for (U-Net, text encoders); one number applies to both. Raises InputError for other values."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e4 for one in pair)
    if len(pair) != 2 or not numbers:
        raise InputError(f"the weight of LoRA {name!r} is {value!r}; give a number, or a pair (unet, text encoder)")
    return float(pair[0]), float(pair[1])


def _check_fit(file: Path, key: Key, delta: Delta, layer: LayerShape) -> None:
    """Raise CheckpointError unless the shapes of a delta's tensors match each other and the layer."""
    name, wanted = ".".join(key), (layer.weight[0], math.prod(layer.weight[1:]))
    try:
        outputs, rest = delta.shape()
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{file}: the tensors of {name} do not match each other ({error})") from error
    if (outputs, rest or wanted[1]) != wanted:
        raise CheckpointError(
            f"{file} was made for another kind of model: {name} is {outputs}x{rest} there, {wanted[0]}x{wanted[1]} here"
        )
    biases = [delta.tensors[kind] for kind in ("up_bias", "diff_bias") if kind in delta.tensors]
    if biases and not layer.bias:
        raise CheckpointError(f"{file} changes the bias of {name}, which has none; use its own base model")
    sizes = [(bias.numel(), layer.weight[:1]) for bias in biases]
    if (magnitude := delta.magnitude()) is not None:
        sizes.append((magnitude[0].numel(), layer.weight[1:2] if magnitude[1] else layer.weight[:1]))
    for found, allowed in sizes:
        if found not in allowed:
            raise CheckpointError(f"{file}: {found} numbers for {name}, a weight of {list(layer.weight)}; "
                                  "use its own base model")  # fmt: skip
