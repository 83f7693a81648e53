"""The networks of a model: open, move between devices, adapt with LoRAs and learned words, and save them."""

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from latentdiff.checkpoints.components import Components, fill, open_model, read_pipeline, write_pipeline
from latentdiff.checkpoints.lora_names import parts_of
from latentdiff.checkpoints.lora_stack import Key, LoraStack, Weight
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.checkpoints.textual_inversion import load_learned
from latentdiff.errors import CheckpointError, InputError
from latentdiff.files import partial_path
from latentdiff.inputs.diffusers_names import dtype_name, open_arguments
from latentdiff.inputs.model_limits import Task
from latentdiff.runtime.device import pick_device, pick_dtype
from latentdiff.runtime.disk_offload import offload_weights
from latentdiff.runtime.optimize import describe_layers, restore
from latentdiff.runtime.options import RuntimeOptions, choose_options
from latentdiff.text.prompt_encoder import PromptEncoder


class LoadedModel:
    """The networks of a model on one device. Loading, adapting, moving and saving are not thread-safe."""

    def __init__(self, parts: Components, device: torch.device, dtype: torch.dtype | None) -> None:
        """dtype: of all weights; None keeps the dtypes of a model in training, and computes in float32."""
        reads, predicts = parts.denoiser.config.in_channels, parts.denoiser.config.out_channels
        tasks: dict[int, Task] = {predicts: "generate", 2 * predicts + 1: "inpaint", 2 * predicts: "edit"}
        if reads not in tasks:
            raise CheckpointError(
                f"the U-Net reads {reads} channels and predicts {predicts}; use a text-to-image, inpainting or "
                "InstructPix2Pix model"
            )
        self.task = tasks[reads]
        self.denoiser = parts.denoiser.to(device, dtype)
        self.vae = parts.vae.to(device, torch.float32 if parts.vae.config.force_upcast else dtype)
        self.text = parts.text.to(device, dtype)
        self.schedule = parts.schedule
        self.zero_empty_prompt = parts.zero_empty_prompt
        self.generation = parts.generation
        self.source = parts.source
        self.device, self.dtype = device, dtype or torch.float32
        self.options = RuntimeOptions()
        self.prompts = PromptEncoder(self.text)
        self._loras = LoraStack(parts)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        optimize: str = "auto",
        approximate: Sequence[str] = (),
        low_memory: bool = False,
        vae: str | Path | None = None,
        unet: str | Path | None = None,
        variant: str | None = None,
        prediction_type: str | None = None,
        allow_pickle: bool = False,
        **diffusers_names: Any,
    ) -> Self:
        """Open a diffusers folder, a single file, a hub id, or by default the bundled model.

        device: auto, cpu, cuda, cuda:1, mps. dtype: auto, float32, bfloat16, float16. optimize: "auto" replaces layers
        with faster ones for this machine; "off" keeps the plain modules, for inspection, modification or gradients;
        "compile" uses torch.compile, which takes minutes at the first call for each size and is cached on disk.
        approximate: names of `runtime.approximate`, which trade accuracy for speed. low_memory: weights stay in their
        files and are mapped at each call, one block at a time; they can then be neither changed nor saved.
        vae, unet, variant, prediction_type, allow_pickle: see `checkpoints.model_source.OpenOptions`. diffusers_names:
        `torch_dtype`, and arguments of diffusers that have no effect here (`diffusers_names.open_arguments`).
        Raises CheckpointError or InputError. A local path does not access the network.
        """
        options = choose_options(optimize, approximate, low_memory)
        chosen_device = options.device(device)
        theirs = open_arguments(diffusers_names)
        if theirs and dtype != "auto":
            raise InputError("torch_dtype= and dtype= have the same meaning; omit one of them")
        dtype = theirs.get("dtype", dtype)
        chosen_dtype = pick_dtype(dtype_name(dtype), chosen_device)
        source = open_model(path_or_id, OpenOptions(allow_pickle, prediction_type, variant, vae, unet))
        options.prepare_allocator(chosen_device, chosen_dtype)
        give = partial(offload_weights, fast=optimize == "auto") if low_memory else fill
        pipe = cls(read_pipeline(source, chosen_dtype, give), chosen_device, chosen_dtype)
        pipe.options = options
        options.make_ready(pipe.denoiser, pipe.vae)
        return pipe

    def load_lora(
        self, path: str | Path, name: str | None = None, weight: Weight = 1.0, allow_pickle: bool = False
    ) -> str:
        """Load a LoRA file or folder in addition to those in use; returns its name, by default that of the file.

        weight: for U-Net and text encoders, or a pair. Warns of layers that this model does not have.
        Raises CheckpointError for a file that is damaged or belongs to another kind of model.
        """
        self._refuse_low_memory()
        lora = self._loras.read(Path(path), name, allow_pickle)
        if lora.unmatched:
            count, first = len(lora.unmatched), lora.unmatched[0][:80]
            total = count + len(lora.deltas)
            warnings.warn(
                f"{lora.path}: {count} of {total} layers do not exist in this model, for example {first}", stacklevel=2
            )
        self._loras.add(lora, weight)
        self._apply_loras(set(lora.deltas))
        return lora.name

    def set_adapters(self, weights: Mapping[str, Weight]) -> None:
        """Set the weights of the loaded LoRAs: a number, or a pair for U-Net and text encoders; the others become 0.

        A layer that no LoRA changes has exactly the base model's weights. Raises InputError.
        """
        checked = self._loras.check_weights(weights)
        before = self._loras.weights
        self._loras.weights = checked
        self._apply_loras(self._loras.layers_between(before, checked))

    def unload_lora(self, name: str | None = None) -> None:
        """Remove a LoRA, or all if `name` is None, and restore the original weights. Raises InputError."""
        names = list(self._loras.loaded) if name is None else [name]
        self._loras.check_weights(dict.fromkeys(names, 0.0))
        kept = {key: weight for key, weight in self._loras.weights.items() if key not in names}
        self.set_adapters(kept)
        self._loras.remove(names)

    @property
    def adapters(self) -> dict[str, tuple[float, float]]:
        """The loaded LoRAs with their weights for U-Net and text encoders."""
        return {name: self._loras.weights.get(name, (0.0, 0.0)) for name in self._loras.loaded}

    @contextmanager
    def use_adapters(self, weights: Mapping[str, tuple[float, float]]) -> Iterator[None]:
        """Context manager that sets the weights of LoRAs named in a prompt. Raises InputError for unknown names."""
        before = self._loras.weights
        self.check_loaded(weights)
        if weights:
            self.set_adapters({**before, **weights})
        try:
            yield
        finally:
            if weights:
                self.set_adapters(before)

    def check_loaded(self, names: Iterable[str]) -> None:
        """Raise InputError if a prompt names a LoRA that is not loaded."""
        for name in names:
            if name not in self.adapters:
                known = f"loaded: {', '.join(self.adapters)}" if self.adapters else "load it with load_lora() or --lora"
                raise InputError(f"the prompt names <lora:{name}>, which is not loaded; {known}")

    def check_adapters(self, weights: Mapping[str, tuple[float, float]]) -> None:
        """Raise InputError unless the LoRAs named in a prompt have these weights."""
        for name, pair in weights.items():
            if self.adapters.get(name) != pair:
                raise InputError(f"the prompt names <lora:{name}> at {pair}; call set_adapters() for it first")

    def _apply_loras(self, keys: set[Key]) -> None:
        """Recompute the weights of these layers; only these are restored to plain layers and optimised again."""
        if not keys:
            return
        names = {name for part, name in keys if part == "unet"}
        self.prompts.clear()
        restore(self.denoiser, names if self.options.optimize == "auto" and not self.options.approximate else None)
        try:
            self._loras.apply(parts_of(self._components()), keys)
        finally:
            self.options.make_ready(self.denoiser, self.vae)

    def load_textual_inversion(self, path: str | Path, allow_pickle: bool = False) -> list[str]:
        """Add the learned words of a file or folder to the tokenizer; returns them. Raises CheckpointError."""
        self._refuse_low_memory()
        self.prompts.clear()
        return load_learned(self._components(), Path(path), allow_pickle)

    def to(self, device: str | torch.device) -> Self:
        """Move the networks to another device and optimise them there. Raises InputError for a missing device."""
        chosen = pick_device(str(device))
        with self._plain() as parts:
            for part in (parts.denoiser, parts.vae, parts.text):
                part.to(chosen)
            self.device = chosen
        return self

    @contextmanager
    def _plain(self) -> Iterator[Components]:
        """The components with plain layers, whose weights may be changed; they are optimised again afterwards."""
        self._refuse_low_memory()
        restore(self.denoiser)
        restore(self.vae)
        self.prompts.clear()
        try:
            yield self._components()
        finally:
            self.options.make_ready(self.denoiser, self.vae)

    def _components(self) -> Components:
        texts = (self.zero_empty_prompt, self.generation, self.source)
        return Components(self.denoiser, self.vae, self.text, self.schedule, *texts)

    def _refuse_low_memory(self) -> None:
        if self.options.low_memory:
            raise InputError(
                f"low_memory=True keeps the weights in {self.folder}; open the model without it to change or save them"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a new folder that `diffusers.StableDiffusionPipeline.from_pretrained` can open."""
        folder = Path(folder)
        if folder.exists():
            raise InputError(f"{folder} exists; choose a new folder, or remove it first")
        partial = partial_path(folder)
        try:
            with self._plain() as parts:
                write_pipeline(parts, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @property
    def folder(self) -> Path | None:
        """The folder or file of the model; None for a model created in memory."""
        return None if self.source is None else self.source.path

    @property
    def default_size(self) -> int:
        """The side of the training resolution in pixels."""
        return self.denoiser.default_size * self.vae.config.downscale

    @property
    def size_numbers(self) -> int:
        """The number of sizes and scores that the U-Net reads: 6 for SDXL, 5 for its refiner, else 0."""
        config = self.denoiser.config
        if config.addition_embed_type is None:
            return 0
        encoder: Any = self.text.encoders[-1]
        numbers = config.projection_class_embeddings_input_dim - encoder.config.projection_dim
        return int(numbers // config.addition_time_embed_dim)

    def runtime_report(self) -> list[str]:
        """Execution options, device, precision, and which layers were replaced with fast ones, or why not."""
        lines = [f"optimize={self.options.optimize}, device={self.device}, dtype={self.dtype}"]
        lines += [f"denoiser: {line}" for line in describe_layers(self.denoiser)]
        return [*lines, *(f"vae: {line}" for line in describe_layers(self.vae))]
