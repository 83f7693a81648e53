"""DDIM inversion: the noise from which the deterministic sampler makes a given image again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from latentdiff.errors import InputError
from latentdiff.sampling.samplers import Plan, Update
from latentdiff.text.prompt_inputs import ImagePrompts, read_prompts
from latentdiff.text.prompt_syntax import AND

ITERATIONS = 3  # evaluations per level: on the bundled model 1 gives 33 to 37 dB, 2 give 45 to 51, 3 give 54 to 60
SAMPLERS = ("ddim", "euler")  # what is inverted, under its two names


def inverse_plan(plan: Plan, iterations: int = ITERATIONS) -> Plan:
    """A plan from the end of a plan of DDIM with eta 0, where the clean image is, to its start.

    With e the noise that the network predicts, a step from (a, s) to (a', s') is undone by
    x = a / a' x' + (s - a s' / a') e(x), which is solved by fixed-point iteration from x = x' (Pan et al. 2023, arXiv
    2309.04907). One iteration is the inversion of Song et al. 2021, sec. 4.3. Where a = 0 the same is written as
    x = s / s' (x' - a' x0(x)). Raises InputError for a plan of one step from there.
    """
    inverse = Plan([], [], [], [])
    for k in reversed(range(len(plan))):
        update = _undo(*(values[place] for place in (k, k + 1) for values in (plan.alphas, plan.sigmas)))
        for iteration in range(iterations):
            inverse.timesteps.append(plan.timesteps[k])
            inverse.alphas.append(plan.alphas[k])
            inverse.sigmas.append(plan.sigmas[k])
            inverse.table.append(update._replace(rebase=iteration == 0))
    return Plan(
        inverse.timesteps, [*inverse.alphas, *plan.alphas[:1]], [*inverse.sigmas, *plan.sigmas[:1]], inverse.table
    )


def _undo(alpha: float, sigma: float, cleaner_alpha: float, cleaner_sigma: float) -> Update:
    if alpha > 0:
        pull = 1 - alpha * cleaner_sigma / (cleaner_alpha * sigma)
        return Update(alpha / cleaner_alpha, pull, (-alpha * pull, 0.0, 0.0, 0.0), 0.0, False)
    if cleaner_sigma == 0:
        raise InputError("source_prompt= needs more than one step from pure noise; raise num_inference_steps (--steps)")
    ratio = sigma / cleaner_sigma
    return Update(ratio, 0.0, (-cleaner_alpha * ratio, 0.0, 0.0, 0.0), 0.0, False)


def read_sources(texts: Sequence[str], prompts: ImagePrompts, text_encoders: int) -> ImagePrompts:
    """The prompts that describe the input images, read with those of the call. Raises InputError."""
    none = [None] * len(texts)
    sources = read_prompts(texts, none, none, none, prompts.options, text_encoders)
    if sources.loras:
        raise InputError(f"source_prompt names <lora:{next(iter(sources.loras))}>; name LoRAs in the prompt only")
    if prompts.options.syntax != "plain" and any(AND.search(text) for text in texts):
        raise InputError("AND cannot be used in source_prompt; leave it out, or write the word in lower case")
    return replace(sources, loras=prompts.loras)


def check_invertible(sampler: str, eta: float, has_image: bool, others: Mapping[str, Any]) -> None:
    """Raise InputError for a sampler that is not inverted, and for arguments that do not go with a source prompt."""
    if sampler not in SAMPLERS or eta:
        raise InputError(
            f"source_prompt= inverts sampler='ddim' with eta=0, not {sampler!r} with eta={eta:g}; use that"
        )
    if not has_image:
        raise InputError("source_prompt= describes an input image; pass image= (--image), or leave it out")
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name}= does not go with source_prompt=, which finds the noise itself; leave one out")
