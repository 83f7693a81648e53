"""From a prompt to an image: encode the text, sample latents from noise, decode them to pixels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentdiff.denoiser import GuidedDenoiser, Network, NetworkDenoiser, Row, bounded, keep_known
from latentdiff.errors import InputError, did_you_mean
from latentdiff.image_to_image import start_from_images
from latentdiff.images.edit import Canvas, EditOptions
from latentdiff.inputs import Inputs, read_inputs
from latentdiff.inputs.canvases import ImageInputs, input_images, spread
from latentdiff.inputs.diffusers_names import call_arguments
from latentdiff.inputs.model_limits import ModelLimits
from latentdiff.inputs.prompts import ImagePrompts, Texts
from latentdiff.inputs.size_conditioning import SIZE_NAMES
from latentdiff.loaded_model import LoadedModel
from latentdiff.models.conditioning import Conditioning, PromptConditioning
from latentdiff.runtime.approximate import for_one_run
from latentdiff.sampling.inversion import inverse_plan
from latentdiff.sampling.loop import Callback, Denoiser, FiniteWatch, SamplerState, sample, step
from latentdiff.sampling.seamless import wrapped_around
from latentdiff.sampling.seeds import draw_noise, generator_for
from latentdiff.sampling.tiled_denoiser import in_tiles
from latentdiff.text.text_conditioner import PromptOptions
from latentdiff.vae_codec import OutputType, decode_latents, to_output


@dataclass(frozen=True)
class PipelineOutput:
    """`images`: a list of PIL images, float32 [B, H, W, 3] in [0, 1] for "np", [B, 3, H, W] for "pt", or latents.

    `seeds`: the seed of each image; empty if no noise was drawn. `stopped`: whether a callback ended sampling early;
    the images are then the last predictions of the model. `variation_seeds`: seeds of the noise mixed in, if any.
    """

    images: Any
    seeds: list[int]
    stopped: bool = False
    variation_seeds: Sequence[int] = ()


class LatentDiffusionPipeline(LoadedModel):
    """A text-to-image model. Several threads may call one pipeline; load and save from one thread at a time."""

    @property
    def limits(self) -> ModelLimits:
        """The properties of the model that the arguments of a call are checked against."""
        return ModelLimits(
            self.schedule, self.generation, self.denoiser.latent_channels, self.vae.config.downscale, self.default_size,
            self.task, len(self.text.encoders), self.text.max_clip_skip, self.size_numbers,
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
        tile: int | None = None,
        seamless: str | None = None,
        callback: Callback | None = None,
        output_type: OutputType = "pil",
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_syntax: str = "a1111",
        clip_skip: int | None = None,
        variation_seed: int | Sequence[int] | None = None,
        variation_strength: float | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        source_prompt: str | Sequence[str] | None = None,
        **diffusers_names: Any,
    ) -> PipelineOutput:
        """Generate `num_images_per_prompt` images for each prompt.

        num_inference_steps, guidance_scale, sampler, spacing: the model's defaults (`self.generation`, `self.schedule`)
        if None; spacing is one of `sampling.spacings.SPACINGS`.
        guidance_scale: 1 or less means no guidance, as in diffusers. guidance_interval: guide only at timesteps between
        these fractions of the schedule, where 0 is clean and 1 is noise.
        seed: image k uses seed + k, or seed[k], in a separate generator; random if None. latents: [B, C, H/f, W/f]
        initial noise, instead of a seed.
        variation_strength: interpolate from the noise of the seed, which all images then share, to the noise of
        variation_seed + k (random if None), from 0 to 1.
        image: the input image (paths, PIL images, arrays or tensors; one for all prompts or one per prompt). The output
        has its size unless height and width are given. strength: the fraction of the steps to run; 0.8 if None, and 1
        ignores the image. mask_image: repaint the white area; strength is then 1 if None. edit: further options for
        both. source_prompt: a description of the input image; sampling then starts from the noise that `ddim` turns
        into this image with this description (inversion), with a strength of 1 if None.
        tile: evaluate the U-Net and the VAE in overlapping tiles with sides of this many pixels (the VAE of at least
        512), for large images. seamless: x, y or x,y; makes opposite edges match. callback: called with a `StepInfo`
        after each step, and before that after each step of an inversion; returns True to stop.
        prompt_2, negative_prompt_2: prompts for the second of two text encoders; those of the first if None.
        prompt_syntax: "a1111" parses weights, schedules and `<lora:name:0.8>` (docs/prompts.md), "plain" reads the text
        literally. clip_skip: the number of final layers of the text encoders to skip, as in diffusers.
        denoising_start, denoising_end: run only the steps between these fractions of the schedule, as `refiner` does;
        with denoising_start, no noise is added to `image`.
        diffusers_names: `generator`, `callback_on_step_end`, and for SDXL the fields of `SizeConditioning`.
        Raises InputError for invalid arguments, and NonFiniteError if latents or pixels overflow.
        """
        if output_type not in (known := ("pil", "np", "pt", "latent")):
            raise InputError(f"output_type={output_type!r} is unknown; {did_you_mean(output_type, known)}")
        image = None if image is None else input_images(image, self.denoiser.latent_channels)
        prompt = spread(prompt, image)
        count = (1 if isinstance(prompt, str) else len(prompt)) * num_images_per_prompt
        sizes = {name: diffusers_names.pop(name) for name in SIZE_NAMES if name in diffusers_names}
        given = call_arguments(diffusers_names, count, {"seed": seed, "callback": callback})
        seed, callback = given.get("seed", seed), given.get("callback", callback)
        inputs = read_inputs(
            self.limits, prompt, negative_prompt=negative_prompt, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, guidance_interval=guidance_interval, height=height, width=width,
            num_images_per_prompt=num_images_per_prompt, seed=seed, sampler=sampler, spacing=spacing, eta=eta,
            latents=latents, image=image, mask_image=mask_image, strength=strength, edit=edit, prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2, prompt_syntax=prompt_syntax, clip_skip=clip_skip, tile=tile,
            seamless=seamless, variation_seed=variation_seed, variation_strength=variation_strength,
            denoising_start=denoising_start, denoising_end=denoising_end, sizes=sizes, source_prompt=source_prompt,
        )  # fmt: skip
        with self.use_adapters(inputs.prompts.loras):
            rows, x0 = self.sample_rows(self.start(inputs, callback), inputs, callback)
        stopped = not rows[0].state.finished
        done = x0 if stopped else torch.stack([row.result for row in rows])
        return PipelineOutput(
            self.finish(done, output_type, inputs.canvases, inputs.seamless, inputs.tile),
            inputs.drawn_from,
            stopped,
            inputs.varied_by,
        )

    @torch.no_grad()
    def start(self, inputs: Inputs, callback: Callback | None = None) -> list[Row]:
        """Draw the noise and encode the prompts of a call; returns one row per image, before its first step.

        callback: called after each step of an inversion. Raises InputError if it stops one.
        """
        factor, generators = self.vae.config.downscale, [generator_for(seed) for seed in inputs.seeds]
        shape = torch.Size([self.denoiser.latent_channels, inputs.height // factor, inputs.width // factor])
        latents = inputs.latents
        if latents is None:
            latents = draw_noise(generators, shape, torch.empty(0, device=self.device))
            latents = latents if inputs.variation is None else inputs.variation.mix(latents)
        states = [
            SamplerState(inputs.plan, noise, generator)
            for noise, generator in zip(latents.to(self.device), generators, strict=True)
        ]
        for _ in range(inputs.draws_before or 0):
            draw_noise(generators, shape, torch.empty(0))
        prompts = inputs.prompts
        self.check_adapters(prompts.loras)
        rows = []
        for state, positive, negative in zip(states, prompts.positives, prompts.negatives, strict=True):
            joined = self.prompts.positive(positive, inputs.timesteps, prompts.options, inputs.omitted)
            row = Row(state, tuple(_with_ids(prompt, inputs.time_ids[0]) for prompt in joined))
            if inputs.guidance is not None or len(joined) > 1:
                unconditional = _with_ids(self._unconditional(negative, inputs), inputs.time_ids[1])
                row = replace(row, negative=unconditional, guidance=inputs.guidance or row.guidance)
            elif negative and any(negative):
                warnings.warn("the negative prompt has no effect without guidance (a scale above 1)", stacklevel=2)
            rows.append(row)
        if inputs.canvases is None:
            return rows
        if inputs.sources is not None:
            clean = start_from_images(rows, inputs.canvases, None, self.vae, self.task, inputs.tile)
            return self._inverted(clean, inputs, inputs.sources, callback)
        strength = inputs.strength if inputs.draws_before is None else None
        return start_from_images(rows, inputs.canvases, strength, self.vae, self.task, inputs.tile)

    def _inverted(
        self, rows: Sequence[Row], inputs: Inputs, sources: ImagePrompts, callback: Callback | None
    ) -> list[Row]:
        """DDIM inversion: move rows of clean images to the noise from which their source prompts reproduce them."""
        described = self.start(replace(inputs, prompts=sources, guidance=None, canvases=None))
        plan = inverse_plan(inputs.plan)
        denoiser = self._guided(described, self.denoiser, tile=inputs.tile, axes=inputs.seamless)
        ends, _ = sample(denoiser, [replace(row.state, plan=plan) for row in rows], callback)
        if not ends[0].finished:
            raise InputError("the callback stopped the inversion of source_prompt= before any image; return None")
        pairs = zip(rows, ends, strict=True)
        return [replace(row, state=replace(row.state, latents=end.latents)) for row, end in pairs]

    @torch.no_grad()
    def sample_rows(
        self, rows: Sequence[Row], inputs: Inputs, callback: Callback | None = None
    ) -> tuple[list[Row], Tensor]:
        """Run the remaining steps, unless the callback stops early; returns the rows and the last x0 [B, C, h, w]."""
        network = for_one_run(self.denoiser, self.options.approximate, self.options.every)
        watch = FiniteWatch(callback)
        denoiser = self._guided(rows, network, tile=inputs.tile, axes=inputs.seamless)
        states, x0 = sample(denoiser, [row.state for row in rows], watch)
        watch.check()
        return [replace(row, state=state) for row, state in zip(rows, states, strict=True)], x0

    @torch.no_grad()
    def step(
        self, rows: Sequence[Row], batch: int | None = None, tile: int | None = None, axes: str = ""
    ) -> tuple[list[Row], Tensor]:
        """Advance rows of equal latent shapes by one step, each at its own position in its own plan.

        batch: pad the batch to this many network evaluations, so that the result of a row is bit-identical whichever
        rows share its batch. tile, axes: as `tile` and `seamless` of `Inputs`, the same for all rows. Returns the next
        rows and the predicted x0 [B, C, h, w]. Raises InputError for rows that cannot share a batch, that are finished,
        or that belong to another model.
        """
        wanted = self.denoiser.latent_channels
        for row in rows:
            if (found := len(row.state.latents)) != wanted:
                raise InputError(
                    f"a row has {found} latent channels and this model {wanted}; use the pipeline that made it"
                )
        states, x0 = step(self._guided(rows, self.denoiser, batch, tile, axes), [row.state for row in rows])
        return [replace(row, state=state) for row, state in zip(rows, states, strict=True)], x0

    def _guided(
        self, rows: Sequence[Row], network: Network, batch: int | None = None, tile: int | None = None, axes: str = ""
    ) -> Denoiser:
        guided: Denoiser = GuidedDenoiser(NetworkDenoiser(network, self.schedule, self.dtype, batch), rows)
        if tile is not None:
            guided = in_tiles(guided, tile)
        return keep_known(bounded(wrapped_around(guided, axes), self.schedule.config), rows)

    def encode(self, prompt: str, options: PromptOptions | None = None) -> Conditioning:
        """One row of conditioning for a prompt without schedules or AND."""
        return self.prompts.encode([prompt], options or PromptOptions())

    def _unconditional(self, negative: Texts | None, inputs: Inputs) -> PromptConditioning:
        options = inputs.prompts.options
        if negative is None and self.zero_empty_prompt:
            return PromptConditioning.constant(self.prompts.encode([""], options).zeros_like())
        return self.prompts.scheduled(negative or ("",), inputs.timesteps, options, inputs.omitted)

    @torch.no_grad()
    def finish(
        self,
        latents: Tensor,
        output_type: OutputType = "pil",
        canvases: Sequence[Canvas] | None = None,
        axes: str = "",
        tile: int | None = None,
    ) -> Any:
        """Decode latents [B, C, h, w], convert them to `output_type`, and paste them into their canvases, if any.

        axes, tile: as `seamless` and `tile` of `Inputs`. Raises NonFiniteError.
        """
        return to_output(self.vae, latents, output_type, canvases, axes, tile)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to float32 pixels [B, 3, H, W] in [-1, 1]. Raises NonFiniteError."""
        return decode_latents(self.vae, latents)


def _with_ids(prompt: PromptConditioning, ids: Sequence[float]) -> PromptConditioning:
    return prompt.map(lambda conditioning: conditioning.with_time_ids(*ids))
