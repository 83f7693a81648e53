"""Normalise pipeline arguments to one prompt, negative prompt and seed per image."""

import secrets
from collections.abc import Sequence

from torch import Tensor

from latentdiff.errors import InputError


def for_each_image(prompt: str | Sequence[str], name: str, times: int) -> list[str]:
    """The text of every image. Raises InputError for none, and for what is no text."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError(f"{name}={prompts!r} is empty; give at least one")
    for value in prompts:
        if not isinstance(value, str):
            raise InputError(f"{name} holds {value!r}, which is no text; give strings")
    if times < 1:
        raise InputError(f"num_images_per_prompt={times} must be at least 1; try 1")
    return [value for value in prompts for _ in range(times)]


def negatives_for(negative: str | Sequence[str] | None, prompts: list[str], times: int) -> list[str] | None:
    """The negative text of every image, None for none. Raises InputError when they are not as many as the prompts."""
    if negative is None:
        return None
    negatives = for_each_image(negative, "negative_prompt", times)
    if isinstance(negative, str):
        return [negative] * len(prompts)
    if len(negatives) != len(prompts):
        raise InputError(
            f"negative_prompt has {len(negatives) // times} texts for {len(prompts) // times} prompts; give as many"
        )
    return negatives


def seeds_for(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """The seed of every image: from one on, drawn when None. Raises InputError for too many, few, or out of range."""
    if isinstance(seed, Sequence):
        seeds = list(seed)
        if len(seeds) != count:
            raise InputError(f"seed has {len(seeds)} numbers for {count} pictures; give as many, or one for all")
    else:
        first = secrets.randbelow(2**32) if seed is None else seed
        seeds = [first + k for k in range(count)]
    for one in seeds:
        if not 0 <= one < 2**63:
            raise InputError(f"seed={one} must be from 0 to 2**63 - 1; try 0")
    return seeds


def noise_given(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32. Raises InputError for another shape."""
    if latents.shape != shape:
        raise InputError(f"latents are {list(latents.shape)} and must be {list(shape)}; draw them with torch.randn")
    return latents.float()
