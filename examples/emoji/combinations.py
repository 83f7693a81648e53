"""Hold out combinations of objects, colours, numbers and positions, as a fixed function of their names.

A third of the held-out combinations is for choosing settings, the others only for reporting.
"""

from typing import Literal

from examples.emoji.concepts import chance
from examples.emoji.split import VALIDATION_PAIRS

Part = Literal["train", "validation", "test"]
HELD_OUT = {
    "colour": 0.25,
    "number": 0.3,
    "pair": 0.1,
    "position": 0.1,
}  # the fewer combinations of a kind, the larger the share
POSITIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def part_of(kind: str, *names: str) -> Part:
    """The part (train, validation or test) of a combination."""
    drawn, share = chance(f"held-out {kind}", *names), HELD_OUT[kind]
    if drawn >= share:
        return "train"
    return "validation" if drawn < share * VALIDATION_PAIRS else "test"


def colour_part(concept: str, colour: str) -> Part:
    """The part of an object in a colour, independent of other objects in the picture."""
    return part_of("colour", concept, colour)


def number_part(concept: str, number: int) -> Part:
    """The part of two to four copies of an object."""
    return part_of("number", concept, str(number))


def pair_part(first: str, second: str) -> Part:
    """The part of two objects in one picture, in either order."""
    return part_of("pair", *sorted((first, second)))


def position_part(first: str, relation: str, second: str) -> Part:
    """The part of "first RELATION second", which is the same as "second OPPOSITE first"."""
    if first > second:
        first, relation, second = second, OPPOSITE[relation], first
    return part_of("position", first, relation, second)
