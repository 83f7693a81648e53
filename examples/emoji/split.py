"""Hold out some (concept, style) pairs and a few complete concepts from training."""

from examples.emoji.concepts import chance

HELD_OUT_CONCEPTS = (
    "koala", "owl", "snail", "strawberry", "pretzel", "cheese wedge", "violin", "umbrella", "key", "tractor",
    "trophy", "cactus",
)  # fmt: skip
ALWAYS_TRAINED = ("red apple", "cat face", "cat", "rocket")
HELD_OUT_PAIRS = 0.05
VALIDATION_PAIRS = 1 / 3  # of the held-out ones
CORE = ("fluent 3d", "fluent flat", "noto", "twemoji")
SAME_DRAWING = {"fluent color": "fluent flat"}


def is_held_out(concept: str, style: str, styles: set[str]) -> bool:
    """Whether a pair is held out. styles: those that have the concept. The split is a fixed function of the words.

    Only concepts that all core styles have are held out, in at most one of these styles, so that three remain.
    """
    if concept in HELD_OUT_CONCEPTS:
        return True
    if concept in ALWAYS_TRAINED or not styles.issuperset(CORE):
        return False
    style = SAME_DRAWING.get(style, style)
    if style in CORE and style != min(CORE, key=lambda other: chance("pair", concept, other)):
        return False
    return chance("pair", concept, style) < HELD_OUT_PAIRS


def is_validation(concept: str, style: str) -> bool:
    """Whether a held-out pair is for choosing settings; the others are only for reporting."""
    return chance("validation", concept, style) < VALIDATION_PAIRS
