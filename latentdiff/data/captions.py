"""Which caption a picture has this time."""

import random

from latentdiff.config.train import DataConfig
from latentdiff.data.layouts import Row


def choose_caption(row: Row, config: DataConfig, rng: random.Random) -> str:
    """One of the row's captions; where that is asked, its parts between commas in any order behind the first, or fewer.

    One of which nothing is left is empty, as for guidance.
    """
    caption = rng.choice(row.captions)
    comma = "，" if "，" in caption else ", "
    first, *rest = caption.split(comma)
    if config.shuffle_captions:
        rng.shuffle(rest)
    if config.tag_dropout:
        return comma.join(tag for tag in (first, *rest) if rng.random() >= config.tag_dropout)
    return comma.join([first, *rest])
