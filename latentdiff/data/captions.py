"""Which caption a picture has this time."""

import random
import re

from latentdiff.config.train import DataConfig
from latentdiff.data.layouts import Row

COMMA = re.compile("(, |，)")


def choose_caption(row: Row, config: DataConfig, rng: random.Random) -> str:
    """One of the row's captions; where that is asked, its parts between commas in any order behind the first, or fewer.

    What is in `config.prefix` is never left out, and neither is all of a caption.
    """
    caption = rng.choice(row.captions)
    if not (config.shuffle_captions or config.tag_dropout):
        return caption
    first, *others = COMMA.split(caption)
    rest = list(zip(others[::2], others[1::2], strict=True))  # each with the comma before it
    if config.shuffle_captions:
        rng.shuffle(rest)
    parts = [("", first), *rest]
    if config.tag_dropout:
        always = COMMA.split(config.prefix)
        parts = [part for part in parts if part[1] in always or rng.random() >= config.tag_dropout] or parts
    return parts[0][1] + "".join(comma + part for comma, part in parts[1:])
