"""Which caption a picture has this time."""

import random

from latentdiff.config.train import DataConfig
from latentdiff.data.layouts import Row


def choose_caption(row: Row, config: DataConfig, rng: random.Random) -> str:
    """One of the row's captions; what lies between its commas in any order, behind the first, where that is asked."""
    caption = rng.choice(row.captions)
    if not config.shuffle_captions:
        return caption
    first, *rest = caption.split(", ")
    rng.shuffle(rest)
    return ", ".join([first, *rest])
