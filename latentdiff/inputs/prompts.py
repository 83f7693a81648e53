"""The prompts of a call: one validated text per image and text encoder; LoRA tags are taken out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from latentdiff.errors import InputError, did_you_mean
from latentdiff.text.prompt_syntax import AND, SYNTAXES, LoraTag, PromptSyntax, take_lora_tags
from latentdiff.text.text_conditioner import PromptOptions

Texts = tuple[str, ...]
"""One text for all text encoders, or one per encoder."""


@dataclass(frozen=True)
class ImagePrompts:
    """One prompt and one negative prompt per image; a negative prompt of None is the model's default.

    loras: weights for U-Net and text encoders of the LoRAs named in the prompts, equal for all images.
    """

    positives: list[Texts]
    negatives: list[Texts | None]
    options: PromptOptions
    loras: dict[str, tuple[float, float]]


def read_options(syntax: str, clip_skip: int, max_clip_skip: int) -> PromptOptions:
    """Validate the options. Raises InputError for an unknown syntax, and for a clip_skip that leaves no layer."""
    known: dict[str, PromptSyntax] = {name: name for name in SYNTAXES}
    if syntax not in known:
        raise InputError(f"prompt_syntax={syntax!r} is unknown; {did_you_mean(syntax, SYNTAXES)}")
    if not 0 <= clip_skip <= max_clip_skip:
        raise InputError(f"clip_skip={clip_skip} must be from 0 to {max_clip_skip} for this model; 0 skips no layer")
    return PromptOptions(known[syntax], clip_skip)


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


def read_prompts(
    prompts: Sequence[str],
    negatives: Sequence[str | None],
    prompts_2: Sequence[str | None],
    negatives_2: Sequence[str | None],
    options: PromptOptions,
    text_encoders: int,
) -> ImagePrompts:
    """Pair the texts of each image, and extract the LoRA tags from the prompts.

    Raises InputError for a text for a second encoder if the model has none, for AND combined with such a text, for tags
    in negative prompts, and if the prompts of a call name different LoRAs.
    """
    for name, second in (("prompt_2", prompts_2), ("negative_prompt_2", negatives_2)):
        if text_encoders < 2 and any(text is not None for text in second):
            raise InputError(f"{name} is for models with two text encoders and this one has {text_encoders}; omit it")
    positives = [_pair(*texts) for texts in zip(prompts, prompts_2, strict=True)]
    pairs = zip(negatives, negatives_2, strict=True)
    unconditional = [None if text is None and other is None else _pair(text or "", other) for text, other in pairs]
    if options.syntax == "plain":
        return ImagePrompts(positives, unconditional, options, {})
    for texts in positives:
        if len(texts) > 1 and any(AND.search(text) for text in texts):
            raise InputError("AND cannot be used with prompt_2; omit prompt_2, or write the word in lower case")
    for negative in unconditional:
        if tags := [tag for text in negative or () for tag in take_lora_tags(text)[1]]:
            raise InputError(f"<lora:{tags[0].name}> is in a negative prompt; move it to the prompt")
    taken = [[take_lora_tags(text) for text in texts] for texts in positives]
    loras = [_weights([tag for _, tags in texts for tag in tags]) for texts in taken]
    if any(weights != loras[0] for weights in loras):
        names = sorted({name for weights in loras for name in weights})
        raise InputError(f"the prompts use different LoRAs or weights ({', '.join(names)}); use one call for each")
    return ImagePrompts([tuple(text for text, _ in texts) for texts in taken], unconditional, options, loras[0])


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


def _pair(text: str, second: str | None) -> Texts:
    return (text,) if second is None else (text, second)


def _weights(tags: Sequence[LoraTag]) -> dict[str, tuple[float, float]]:
    """The sum of the weights for each name."""
    weights: dict[str, tuple[float, float]] = {}
    for tag in tags:
        unet, text = weights.get(tag.name, (0.0, 0.0))
        weights[tag.name] = (unet + tag.unet_weight, text + tag.text_weight)
    return weights
