"""Size conditioning of SDXL's U-Nets: sizes and a crop, and for the refiner an aesthetic score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from latentdiff.errors import InputError, check_integer

SIZES, REFINER_SIZES = 6, 5  # the counts of numbers that SDXL's base model and its refiner read
LARGEST = 2**16  # pixels

Pair = tuple[int, int]


@dataclass(frozen=True)
class SizeConditioning:
    """Podell et al. 2023, sec. 2.2, with diffusers' names: (height, width) and (top, left) in pixels.

    Sizes default to that of the image, and negative values to their positive counterparts.
    """

    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair | None = None
    negative_target_size: Pair | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def time_ids(self, size: Pair, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The numbers for a prompt and for its negative prompt. size: of the image. count: the number of values that
        the U-Net reads.
        """
        original, target = self.original_size or size, self.target_size or size
        crop = self.crops_coords_top_left or (0, 0)
        negative = self.negative_original_size or original, self.negative_crops_coords_top_left or crop
        if count == REFINER_SIZES:
            return (*original, *crop, self.aesthetic_score), (*negative[0], *negative[1], self.negative_aesthetic_score)
        return (*original, *crop, *target), (*negative[0], *negative[1], *(self.negative_target_size or target))


SIZE_NAMES = tuple(field.name for field in fields(SizeConditioning))
TARGETS = tuple(name for name in SIZE_NAMES if "target" in name)
SCORES = tuple(name for name in SIZE_NAMES if "score" in name)


def read_sizes(given: Mapping[str, Any], count: int) -> SizeConditioning:
    """Validate values for some of `SIZE_NAMES`. count: the number of values that the U-Net reads; 0 for other families.

    Raises InputError for a value out of range, and for a value that the model does not read.
    """
    known = {name: value for name, value in given.items() if value is not None}
    for name in known:
        if reason := _not_read(name, count):
            raise InputError(f"{name}= (--{name.replace('_', '-')}) {reason}")
    return SizeConditioning(**{name: _checked(name, value) for name, value in known.items()})


def _not_read(name: str, count: int) -> str | None:
    """The reason why a model that reads `count` numbers does not read this value, or None if it does."""
    if count == 0:
        return "is only for Stable Diffusion XL, and this model reads no sizes; omit it"
    if name in SCORES and count == SIZES:
        return "is only for SDXL's refiner, and this model reads no score; add a refiner (--refiner), or omit it"
    if name in TARGETS and count == REFINER_SIZES:
        return "is not read by SDXL's refiner, which reads an aesthetic score instead; omit it"
    return None


def _checked(name: str, value: Any) -> Any:
    if name in SCORES:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{name}={value!r} must be a finite number; try 6")
        return float(value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        rule = "top and left of the crop" if "crops" in name else "height and width"
        raise InputError(f"{name}={value!r} must be a pair, {rule} in pixels; try (1024, 1024)")
    return tuple(check_integer(number, name, 0 if "crops" in name else 1, LARGEST) for number in value)
