"""`PromptEncoder`: the prompts of an image at each step (schedules, AND), encoded by a `TextConditioner` and cached."""

import math
import warnings
from collections.abc import Sequence

from latentdiff.models.conditioning import Conditioning, PromptConditioning
from latentdiff.text.prompt_schedule import schedule_prompt
from latentdiff.text.prompt_syntax import split_and
from latentdiff.text.text_conditioner import PromptOptions, TextConditioner

KEPT_TEXTS = 64  # encoded prompts, the most recently used


class PromptEncoder:
    """Encodes each prompt separately, so that rows of a batch are independent, and caches recent prompts."""

    def __init__(self, text: TextConditioner) -> None:
        self.text = text
        self._kept: dict[tuple[tuple[str, ...], PromptOptions], Conditioning] = {}

    def clear(self) -> None:
        """Clear the cache, before the encoders change."""
        self._kept.clear()

    def positive(
        self, prompts: Sequence[str], timesteps: Sequence[float], options: PromptOptions, omitted: int = 0
    ) -> tuple[PromptConditioning, ...]:
        """The conditioning of each prompt joined by AND. prompts: one text, or one per encoder.

        timesteps: of the evaluations, in descending order; each distinct one is a step for `[from:to:when]`.
        omitted: the steps that image to image skips before them. As in A1111, steps are counted from the first one that
        runs, and fractions refer to all steps.
        """
        if options.syntax == "plain" or len(prompts) > 1:
            return (self.scheduled(prompts, timesteps, options, omitted),)
        parts = split_and(prompts[0])
        return tuple(self.scheduled([part.text], timesteps, options, omitted, part.weight) for part in parts)

    def scheduled(
        self,
        prompts: Sequence[str],
        timesteps: Sequence[float],
        options: PromptOptions,
        omitted: int = 0,
        weight: float = 1.0,
    ) -> PromptConditioning:
        """The conditioning of a prompt without AND (in negative prompts AND is text), for all timesteps."""
        if options.syntax == "plain":
            return PromptConditioning.constant(self.encode(prompts, options))
        levels = list(dict.fromkeys(timesteps))  # methods of two evaluations per step visit a level twice
        changes = [schedule_prompt(prompt, len(levels) + omitted) for prompt in prompts]
        starts = {change.step for texts in changes for change in texts}
        spans = []
        for step in sorted(step for step in starts if step < max(1, len(levels))):
            texts = [next(change.text for change in reversed(own) if change.step <= step) for own in changes]
            spans.append((levels[step] if step else math.inf, self.encode(texts, options)))
        return PromptConditioning(tuple(spans), weight)

    def encode(self, prompts: Sequence[str], options: PromptOptions) -> Conditioning:
        """One row, from prompts without schedules. Warns if a plain prompt is truncated."""
        texts = tuple(prompts) * (len(self.text.encoders) if len(prompts) == 1 else 1)
        key = texts, options
        if (known := self._kept.pop(key, None)) is None:
            for text in dict.fromkeys(texts) if options.syntax == "plain" else ():
                if lost := self.text.lost_words(text):
                    warnings.warn(
                        f"the prompt exceeds the model's token limit; this part is lost: {lost!r}", stacklevel=2
                    )
            known = self.text.encode_prompt(texts, options)
            for oldest in list(self._kept)[: 1 - KEPT_TEXTS]:
                self._kept.pop(oldest, None)
        self._kept[key] = known
        return known
