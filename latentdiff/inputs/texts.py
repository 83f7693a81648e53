"""Read the texts of a call: a prompt for each image, optional further prompts, and descriptions of input images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentdiff.errors import InputError
from latentdiff.text.conditioning import PromptOptions
from latentdiff.text.prompt_inputs import ImagePrompts, read_prompts
from latentdiff.text.prompt_syntax import AND


def prompts_per_image(
    prompt: str | Sequence[str],
    others: Mapping[str, str | Sequence[str] | None],
    times: int,
    options: PromptOptions,
    text_encoders: int,
) -> ImagePrompts:
    """The prompts of `times` images for each prompt. others: `negative_prompt`, `prompt_2` and `negative_prompt_2`.

    Raises InputError.
    """
    texts = texts_per_image(prompt, "prompt", times)
    negatives, seconds, negative_seconds = (
        optional_texts(others[name], name, len(texts), times)
        for name in ("negative_prompt", "prompt_2", "negative_prompt_2")
    )
    return read_prompts(texts, negatives, seconds, negative_seconds, options, text_encoders)


def sources_per_image(
    source_prompt: str | Sequence[str], prompts: ImagePrompts, times: int, text_encoders: int
) -> ImagePrompts:
    """The descriptions of the input images, one per image. prompts: those of the call. Raises InputError."""
    optional = optional_texts(source_prompt, "source_prompt", len(prompts.positives), times)
    texts, none = [text or "" for text in optional], [None] * len(optional)
    sources = read_prompts(texts, none, none, none, prompts.options, text_encoders)
    if sources.loras:
        raise InputError(f"source_prompt contains <lora:{next(iter(sources.loras))}>; use LoRA tags only in the prompt")
    if prompts.options.syntax != "plain" and any(AND.search(text) for text in texts):
        raise InputError("AND cannot be used in source_prompt; remove it, or write the word in lower case")
    return replace(sources, loras=prompts.loras)


def texts_per_image(prompt: str | Sequence[str], name: str, times: int) -> list[str]:
    """The text of each image. Raises InputError if there is none, and for values that are not strings."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError(f"{name}={prompts!r} is empty; pass at least one prompt")
    for value in prompts:
        if not isinstance(value, str):
            raise InputError(f"{name} contains {value!r}, which is not a string; pass strings")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{name}={ascii(value)[:80]} contains half a surrogate pair, not a character; remove it")
    return [value for value in prompts for _ in range(times)]


def optional_texts(value: str | Sequence[str] | None, name: str, count: int, times: int) -> list[str | None]:
    """An additional text for each of `count` images. Raises InputError unless there is one, or one per prompt."""
    if value is None:
        return [None] * count
    texts: list[str | None] = [*texts_per_image(value, name, times)]
    if isinstance(value, str):
        return texts[:1] * count
    if len(texts) != count:
        raise InputError(f"{name} has {len(texts) // times} texts for {count // times} prompts; pass one per prompt")
    return texts
