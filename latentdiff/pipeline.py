"""From a prompt to an image: encode the text, sample latents from noise, decode them to pixels."""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.checkpoints.adapters import Adapters, Key, Weight
from latentdiff.checkpoints.components import Components, fill, open_model, read_pipeline, write_pipeline
from latentdiff.checkpoints.lora_names import parts_of
from latentdiff.checkpoints.source import OpenOptions
from latentdiff.checkpoints.textual_inversion import load_learned
from latentdiff.denoiser import GuidedDenoiser, Network, NetworkDenoiser, Row, bounded, keep_known
from latentdiff.diffusers_names import call_arguments, dtype_name, open_arguments
from latentdiff.edit_rows import edit_rows
from latentdiff.errors import CheckpointError, InputError, did_you_mean
from latentdiff.files import partial_path
from latentdiff.images.edit import Canvas, EditOptions
from latentdiff.images.reading import read_images
from latentdiff.inputs import ImageInputs, Inputs, ModelLimits, Task, generator_for, read_inputs, spread
from latentdiff.latents import FiniteWatch, OutputType, decode_latents, to_output
from latentdiff.models.conditioning import Conditioning
from latentdiff.runtime import pick_device, pick_dtype
from latentdiff.runtime.approximate import for_one_run
from latentdiff.runtime.offload import offload_weights
from latentdiff.runtime.optimize import report, restore
from latentdiff.runtime.options import RuntimeOptions, choose_options
from latentdiff.samplers import Callback, Denoiser, SamplerState, draw_noise, sample, step

KEPT_TEXTS = 64  # encoded prompts, the most recently used


@dataclass(frozen=True)
class PipelineOutput:
    """`images`: a list of PIL images, float32 [B, H, W, 3] in [0, 1] for "np", [B, 3, H, W] for "pt", or latents.

    `seeds`: what each image was drawn from; empty where nothing was drawn. `stopped`: a callback ended sampling early,
    and the images are what the model predicted until then.
    """

    images: Any
    seeds: list[int]
    stopped: bool = False


class LatentDiffusionPipeline:
    """A text-to-image model. Several threads may call one pipeline; load and save from one thread at a time."""

    def __init__(self, parts: Components, device: torch.device, dtype: torch.dtype | None) -> None:
        """dtype: of all weights; None keeps those of a model in training as they are and computes in float32."""
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
        self._texts: dict[str, Conditioning] = {}
        self._adapters = Adapters(parts)

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
    ) -> "LatentDiffusionPipeline":
        """Open a diffusers folder, a single file, a hub id, or without an argument the bundled model.

        device: auto, cpu, cuda, cuda:1, mps. dtype: auto, float32, bfloat16, float16. optimize: "auto" replaces layers
        by faster ones for this machine; "off" keeps the plain modules, for inspection, changes or gradients; "compile"
        uses torch.compile, which takes minutes at the first call for each size and reads a disk cache after that.
        approximate: names of `runtime.approximate`, which trade accuracy for speed. low_memory: weights stay in their
        files and are mapped at each call, one block at a time; they cannot be changed or saved then.
        vae, unet, variant, prediction_type, allow_pickle: see `checkpoints.source.OpenOptions`. diffusers_names:
        `torch_dtype`, and arguments of diffusers that change nothing here (`diffusers_names.open_arguments`).
        Raises CheckpointError or InputError. A local path opens no connection.
        """
        options = choose_options(optimize, approximate, low_memory)
        chosen_device = options.device(device)
        dtype = open_arguments(diffusers_names).get("dtype", dtype)
        chosen_dtype = pick_dtype(dtype_name(dtype), chosen_device)
        source = open_model(path_or_id, OpenOptions(allow_pickle, prediction_type, variant, vae, unet))
        options.await_weights(chosen_device, chosen_dtype)
        give = partial(offload_weights, fast=optimize == "auto") if low_memory else fill
        pipe = cls(read_pipeline(source, chosen_dtype, give), chosen_device, chosen_dtype)
        pipe.options = options
        options.make_ready(pipe.denoiser, pipe.vae)
        return pipe

    def load_lora(
        self, path: str | Path, name: str | None = None, weight: Weight = 1.0, allow_pickle: bool = False
    ) -> str:
        """Add a LoRA file or folder to those in use; returns its name, by default that of the file.

        weight: for U-Net and text encoders, or a pair for each. Warns of layers that this model does not have.
        Raises CheckpointError for a file that is damaged or belongs to another kind of model.
        """
        self._refuse_low_memory()
        adapter = self._adapters.read(Path(path), name, allow_pickle)
        if adapter.unmatched:
            count, first = len(adapter.unmatched), adapter.unmatched[0][:80]
            total = count + len(adapter.deltas)
            warnings.warn(f"{adapter.path}: {count} of {total} layers match nothing here, {first} first", stacklevel=2)
        self._adapters.add(adapter, weight)
        self._apply_adapters(set(adapter.deltas))
        return adapter.name

    def set_adapters(self, weights: Mapping[str, Weight]) -> None:
        """Use these of the loaded LoRAs, each at a weight for all or a pair for U-Net and text encoders; others at 0.

        A layer that no LoRA changes any more has the base model's weights to the bit. Raises InputError.
        """
        checked = self._adapters.check_weights(weights)
        before = self._adapters.weights
        changed = {name for name in before.keys() | checked.keys() if before.get(name) != checked.get(name)}
        self._adapters.weights = checked
        self._apply_adapters(self._adapters.layers(changed))

    def unload_lora(self, name: str | None = None) -> None:
        """Remove a LoRA, all without a name; the weights are those of the model's files again. Raises InputError."""
        names = list(self._adapters.loaded) if name is None else [name]
        self._adapters.check_weights(dict.fromkeys(names, 0.0))
        kept = {key: weight for key, weight in self._adapters.weights.items() if key not in names}
        self.set_adapters(kept)
        self._adapters.remove(names)

    @property
    def adapters(self) -> dict[str, tuple[float, float]]:
        """The loaded LoRAs with their weights for U-Net and text encoders."""
        return {name: self._adapters.weights.get(name, (0.0, 0.0)) for name in self._adapters.loaded}

    def _apply_adapters(self, keys: set[Key]) -> None:
        """Compute these layers again; only they are taken out of the fast form and put back."""
        if not keys:
            return
        names = {name for part, name in keys if part == "unet"}
        self._texts.clear()
        restore(self.denoiser, names if self.options.optimize == "auto" and not self.options.approximate else None)
        try:
            self._adapters.apply(parts_of(self._components()), keys)
        finally:
            self.options.make_ready(self.denoiser, self.vae)

    def load_textual_inversion(self, path: str | Path, allow_pickle: bool = False) -> list[str]:
        """Add the learned words of a file or folder to the tokenizer; returns them. Raises CheckpointError."""
        self._refuse_low_memory()
        self._texts.clear()
        return load_learned(self._components(), Path(path), allow_pickle)

    def to(self, device: str | torch.device) -> "LatentDiffusionPipeline":
        """Move the networks to another device, and make them fast there. Raises InputError for one that is not here."""
        chosen = pick_device(str(device))
        with self._plain() as parts:
            for part in (parts.denoiser, parts.vae, parts.text):
                part.to(chosen)
            self.device = chosen
        return self

    @contextmanager
    def _plain(self) -> Iterator[Components]:
        """The components with plain layers; changes to their weights apply from the next call on."""
        self._refuse_low_memory()
        restore(self.denoiser)
        restore(self.vae)
        self._texts.clear()
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
                f"low_memory=True leaves the weights in {self.folder}; open the model without it to change or save them"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `diffusers.StableDiffusionPipeline.from_pretrained` opens; it must not exist yet."""
        folder = Path(folder)
        if folder.exists():
            raise InputError(f"{folder} exists; name a new folder, or remove it first")
        partial = partial_path(folder)
        try:
            with self._plain() as parts:
                write_pipeline(parts, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @property
    def folder(self) -> Path | None:
        """The folder or file that the model was opened from; None for one made in memory."""
        return None if self.source is None else self.source.path

    @property
    def default_size(self) -> int:
        """Pixels a side that the model was trained for."""
        return self.denoiser.default_size * self.vae.config.downscale

    def runtime_report(self) -> list[str]:
        """How the networks run: options, device, precision, and which layers fast ones replaced, or why not."""
        lines = [f"optimize={self.options.optimize}, device={self.device}, dtype={self.dtype}"]
        lines += [f"denoiser: {line}" for line in report(self.denoiser)]
        return [*lines, *(f"vae: {line}" for line in report(self.vae))]

    @property
    def limits(self) -> ModelLimits:
        """What the arguments of a call depend on."""
        return ModelLimits(
            self.schedule, self.generation, self.denoiser.latent_channels, self.vae.config.downscale, self.default_size,
            self.task,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        image: ImageInputs | None = None,
        mask_image: ImageInputs | None = None,
        strength: float | None = None,
        edit: EditOptions | None = None,
        callback: Callback | None = None,
        output_type: OutputType = "pil",
        **diffusers_names: Any,
    ) -> PipelineOutput:
        """Make `num_images_per_prompt` images of each prompt.

        num_inference_steps, guidance_scale, sampler: the model's own (`self.generation`) when None. spacing: one of
        `spacings.SPACINGS`, the model's own when None.
        guidance_scale: 1 or less means no guidance, as in diffusers. guidance_interval: guide only at timesteps between
        these fractions of all, 0 clean and 1 noise. seed: image k is drawn from seed + k, or from seed[k], by its own
        generator; random when None. latents: [B, C, H/f, W/f] noise to start from instead.
        image: start from it (paths, PIL, arrays, tensors; one for all prompts or one for each), at its own size unless
        height and width are given; `strength` of the steps run, 0.8 when None, and 1 ignores it. mask_image: repaint
        where it is white, and strength is 1 when None. edit: how both are used. callback: called with a
        `StepInfo` after each step; returns True to stop. diffusers_names: `generator` and `callback_on_step_end`.
        Raises InputError for arguments that cannot be used, NonFiniteError when a number overflows.
        """
        if output_type not in (known := ("pil", "np", "pt", "latent")):
            raise InputError(f"output_type={output_type!r} is unknown; {did_you_mean(output_type, known)}")
        image = None if image is None else read_images(image)
        prompt = spread(prompt, image)
        count = (1 if isinstance(prompt, str) else len(prompt)) * num_images_per_prompt
        given = call_arguments(diffusers_names, count)
        seed, callback = given.get("seed", seed), given.get("callback", callback)
        inputs = read_inputs(
            self.limits, prompt, negative_prompt, num_inference_steps, guidance_scale, guidance_interval,
            height, width, num_images_per_prompt, seed, sampler, spacing, eta, latents,
            image, mask_image, strength, edit,
        )  # fmt: skip
        rows = self.start(inputs)
        network = for_one_run(self.denoiser, self.options.approximate, self.options.every)
        watch = FiniteWatch(callback)
        states, x0 = sample(self._guided(rows, network), [row.state for row in rows], watch)
        watch.check()
        stopped = not states[0].finished
        results = [replace(row, state=state).result for row, state in zip(rows, states, strict=True)]
        done = x0 if stopped else torch.stack(results)
        return PipelineOutput(self.finish(done, output_type, inputs.canvases), inputs.drawn_from, stopped)

    @torch.no_grad()
    def start(self, inputs: Inputs) -> list[Row]:
        """The rows of a call before their first step, one per image: noise drawn, prompts encoded."""
        factor, generators = self.vae.config.downscale, [generator_for(seed) for seed in inputs.seeds]
        shape = torch.Size([self.denoiser.latent_channels, inputs.height // factor, inputs.width // factor])
        latents = inputs.latents
        if latents is None:
            latents = draw_noise(generators, shape, torch.empty(0, device=self.device))
        states = [
            SamplerState(inputs.plan, noise, generator)
            for noise, generator in zip(latents.to(self.device), generators, strict=True)
        ]
        sizes = (inputs.height, inputs.width, 0, 0, inputs.height, inputs.width)
        positives = [self.encode(prompt).with_time_ids(*sizes) for prompt in inputs.prompts]
        if inputs.guidance is None:
            rows = [Row(*row) for row in zip(states, positives, strict=True)]
        else:
            negatives = [self._unconditional(negative).with_time_ids(*sizes) for negative in inputs.negatives]
            guidance = [inputs.guidance] * len(states)
            rows = [Row(*row) for row in zip(states, positives, negatives, guidance, strict=True)]
        if inputs.canvases is None:
            return rows
        return edit_rows(rows, inputs.canvases, inputs.strength, self.vae, self.task)

    @torch.no_grad()
    def step(self, rows: Sequence[Row], batch: int | None = None) -> tuple[list[Row], Tensor]:
        """Advance rows of one latent shape and token count by one step, each at its own position of its own plan.

        batch: network evaluations are padded to this many, so that a row is computed to the same bits whichever rows
        share its batch. Returns the rows after the step, and the predicted x0 [B, C, h, w]. Raises InputError for rows
        that cannot share a batch, are finished, or belong to another model.
        """
        wanted = self.denoiser.latent_channels
        for row in rows:
            if (found := len(row.state.latents)) != wanted:
                raise InputError(f"a row has {found} latent channels, this model {wanted}; step it by its own pipeline")
        states, x0 = step(self._guided(rows, self.denoiser, batch), [row.state for row in rows])
        return [replace(row, state=state) for row, state in zip(rows, states, strict=True)], x0

    def _guided(self, rows: Sequence[Row], network: Network, batch: int | None = None) -> Denoiser:
        guided = GuidedDenoiser(NetworkDenoiser(network, self.schedule, self.dtype, batch), rows)
        return keep_known(bounded(guided, self.schedule.config), rows)

    def encode(self, prompt: str) -> Conditioning:
        """One row of conditioning. Prompts are encoded one at a time and kept: no row depends on others."""
        if (known := self._texts.pop(prompt, None)) is None:
            if lost := self.text.lost_words(prompt):
                warnings.warn(f"the prompt is over the model's token limit; this part is lost: {lost!r}", stacklevel=4)
            known = self.text.encode([prompt])
            for oldest in list(self._texts)[: 1 - KEPT_TEXTS]:
                self._texts.pop(oldest, None)
        self._texts[prompt] = known
        return known

    def _unconditional(self, negative: str | None) -> Conditioning:
        if negative is None and self.zero_empty_prompt:
            return self.encode("").zeros_like()
        return self.encode(negative or "")

    @torch.no_grad()
    def finish(self, latents: Tensor, output_type: OutputType = "pil", canvases: Sequence[Canvas] | None = None) -> Any:
        """Latents [B, C, h, w] decoded to what `output_type` names, and pasted into their canvases, if any.

        Raises NonFiniteError.
        """
        return to_output(self.vae, latents, output_type, canvases)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to float32 pixels [B, 3, H, W] in [-1, 1]. Raises NonFiniteError."""
        return decode_latents(self.vae, latents)
