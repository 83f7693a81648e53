"""Choose and modify the caption of a picture for one draw."""

import random
import re

from latentdiff.config.data import DataConfig
from latentdiff.data.layouts import DataRow

COMMA = re.compile("(, |，)")


def prefixed(caption: str, prefix: str) -> str:
    """`prefix, caption`, or the one of them that is not empty."""
    return ", ".join(part for part in (prefix, caption) if part)


def choose_caption(row: DataRow, config: DataConfig, rng: random.Random) -> str:
    """One of the row's captions, with its comma-separated parts shuffled and dropped according to `config`.

    The first part stays first. Parts of `config.prefix` are never dropped, and at least one part remains.
    """
    caption = rng.choice(row.captions)
    if not (config.shuffle_captions or config.tag_dropout):
        return caption
    first, *others = COMMA.split(caption)
    rest = list(zip(others[::2], others[1::2], strict=True))  # each with its comma
    if config.shuffle_captions:
        rng.shuffle(rest)
    parts = [("", first), *rest]
    if config.tag_dropout:
        always = COMMA.split(config.prefix)
        parts = [part for part in parts if part[1] in always or rng.random() >= config.tag_dropout] or parts
    return parts[0][1] + "".join(comma + part for comma, part in parts[1:])
