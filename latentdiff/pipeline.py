"""From a prompt to an image: encode the text, sample latents from noise, decode them to pixels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentdiff.denoiser import GuidedDenoiser, Network, NetworkDenoiser, Row, bounded, keep_known
from latentdiff.diffusers_names import call_arguments
from latentdiff.edit_rows import edit_rows
from latentdiff.errors import InputError, did_you_mean
from latentdiff.images.edit import Canvas, EditOptions
from latentdiff.images.reading import read_images
from latentdiff.inputs import ImageInputs, Inputs, ModelLimits, generator_for, read_inputs, spread
from latentdiff.latents import FiniteWatch, OutputType, decode_latents, to_output
from latentdiff.loaded_model import LoadedModel
from latentdiff.models.conditioning import Conditioning
from latentdiff.runtime.approximate import for_one_run
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


class LatentDiffusionPipeline(LoadedModel):
    """A text-to-image model. Several threads may call one pipeline; load and save from one thread at a time."""

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
