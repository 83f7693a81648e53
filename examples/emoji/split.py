"""Which pictures are never trained on: some (concept, style) pairs, and a few whole concepts."""

from examples.emoji.concepts import chance

HELD_OUT_CONCEPTS = (
    "koala", "owl", "snail", "strawberry", "pretzel", "cheese wedge", "violin", "umbrella", "key", "lighthouse",
    "tractor", "trophy", "cactus",
)  # fmt: skip
ALWAYS_TRAINED = ("red apple", "cat face", "cat", "rocket")
HELD_OUT_PAIRS = 0.05
OTHER_STYLES = 3


def is_held_out(concept: str, style: str, styles: set[str]) -> bool:
    """`styles` are those that show the concept at all. Depends on the words alone, so the split never moves."""
    if concept in HELD_OUT_CONCEPTS:
        return True
    if concept in ALWAYS_TRAINED or len(styles) <= OTHER_STYLES:
        return False
    candidates = sorted(styles, key=lambda s: chance("pair", concept, s))
    chosen = [s for s in candidates if chance("pair", concept, s) < HELD_OUT_PAIRS]
    return style in chosen[: len(styles) - OTHER_STYLES]
