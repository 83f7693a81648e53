"""Aspect-ratio buckets: the size that a picture is cropped and resized to."""

import math
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

from latentdiff.config.data import DataConfig
from latentdiff.errors import InputError

# neighbours differ by a factor of at most 1.2, so a picture loses less than a tenth of its area
RATIOS = (8 / 7, 4 / 3, 3 / 2, 16 / 9, 2.1, 2.5, 3, 3.5, 4)  # fmt: skip
AREAS = (0.75, 1.05)  # of the square's
STEP = 64
AREA_WEIGHT = 0.2
RANDOM_CROPS = 4

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class View:
    """A crop of a picture that is scaled to cover `size`, with its position from 0 (left, top) to 1 (right, bottom).

    background: the colour behind transparent pictures.
    """

    size: Size
    place: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False
    background: str = "white"


@dataclass(frozen=True)
class Fitting:
    """Settings that determine the buckets, whose sides are multiples of `multiple`, and how pictures are fitted."""

    resolution: int
    multiple: int = 8
    buckets: bool = True
    max_crop: float = 0.1
    allow_upscale: float = 1.05

    @classmethod
    def of(cls, config: DataConfig, multiple: int) -> "Fitting":
        """The fitting of a config. Raises InputError if its resolution is not a multiple of `multiple`."""
        if over := config.resolution % multiple:
            near = [size for size in (config.resolution - over, config.resolution - over + multiple) if size]
            raise InputError(
                f"resolution={config.resolution} must be a multiple of {multiple}; try {' or '.join(map(str, near))}"
            )
        return cls(config.resolution, multiple, config.buckets, config.max_crop, config.allow_upscale)

    @cached_property
    def sizes(self) -> list[Size]:
        """The square and, with buckets, a size for each of RATIOS and its inverse.

        Their sides are multiples of 64 for squares of 512 pixels or more, else of an eighth of the square's side.
        """
        square = (self.resolution, self.resolution)
        if not self.buckets:
            return [square]
        step = max(1, min(STEP, self.resolution // 8) // self.multiple) * self.multiple
        wide = dict.fromkeys(size for ratio in RATIOS if (size := _nearest(ratio, self.resolution, step)))
        return [*((h, w) for w, h in reversed(wide)), square, *wide]

    def bucket(self, size: Size) -> Size:
        """The bucket with the lowest cost for a picture of this size."""
        return _bucket(self, size)

    def cost(self, size: Size, bucket: Size) -> float:
        """The share of a picture that is cropped, plus the excess of its enlargement over `allow_upscale`."""
        return lost_area(size, bucket) + max(0.0, enlargement(size, bucket) - self.allow_upscale)

    def problem(self, size: Size) -> tuple[str, str] | None:
        """The kind of error that a picture of this size causes, and its details; None if it is usable."""
        bucket = self.bucket(size)
        if (factor := enlargement(size, bucket)) > self.allow_upscale:
            needed = math.ceil(factor * 100) / 100
            return "too small", (
                f"{size[0]}x{size[1]} would be enlarged {factor:.2f} times to {bucket[0]}x{bucket[1]}, more than "
                f"{self.allow_upscale:g}; use a larger picture, or --allow-upscale {needed:g}"
            )
        if self.buckets and (lost := lost_area(size, bucket)) > self.max_crop + 1e-9:
            return "too narrow", (
                f"{size[0]}x{size[1]} would lose {lost:.0%} of its area, more than {self.max_crop:.0%}; crop it"
            )
        return None


def _nearest(ratio: float, side: int, step: int) -> Size | None:
    """The multiples of `step` nearest to a width-to-height ratio and to the area of the square."""

    def distance(size: Size) -> float:
        width, height = size
        area = width * height / side**2
        return abs(math.log(width / height / ratio)) + AREA_WEIGHT * abs(math.log(area))

    least, most = (share * side**2 for share in AREAS)
    sizes = [
        (width, height)
        for height in range(step, side + 1, step)
        for width in range(height + step, 4 * height + 1, step)
        if least <= width * height <= most
    ]
    return min(sizes, key=distance, default=None)


@lru_cache(maxsize=65536)
def _bucket(fitting: Fitting, size: Size) -> Size:
    return min(fitting.sizes, key=lambda bucket: fitting.cost(size, bucket))


def lost_area(size: Size, bucket: Size) -> float:
    """The share of a picture's area that is cropped when it is scaled to cover the bucket."""
    ratio = size[0] * bucket[1] / (size[1] * bucket[0])
    return 1 - min(ratio, 1 / ratio)


def enlargement(size: Size, bucket: Size) -> float:
    """The factor by which a picture is scaled to cover the bucket."""
    return max(bucket[0] / size[0], bucket[1] / size[1])


def views(size: Size, bucket: Size, config: DataConfig, seed: str) -> list[View]:
    """The crops of one picture: the centre, or random positions from `seed`; with flips, followed by their mirrors."""
    places = [(0.5, 0.5)]
    if config.crop == "random" and lost_area(size, bucket) > 0:
        rng = random.Random(seed)
        places = [(rng.random(), rng.random()) for _ in range(RANDOM_CROPS)]
    sides = (False, True) if config.flip else (False,)
    return [View(bucket, place, mirrored, config.background) for mirrored in sides for place in places]
