"""Which part of a picture is trained on, and how large: pictures of like shape share a bucket, so little is cut."""

import random
from dataclasses import dataclass
from functools import cached_property

from latentdiff.config.train import DataConfig

MAX_RATIO = 4
RANDOM_CROPS = 4

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class View:
    """A cut of a picture: scaled to cover `size`, placed from 0 (left, top) to 1 (right, bottom), maybe mirrored.

    background: the colour that shows through where the picture is transparent.
    """

    size: Size
    place: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False
    background: str = "white"


@dataclass(frozen=True)
class Fitting:
    """How pictures are brought to the sizes that a model is trained on; their sides are multiples of `multiple`."""

    resolution: int
    multiple: int = 8
    buckets: bool = True
    max_crop: float = 0.1

    @classmethod
    def of(cls, config: DataConfig, multiple: int) -> "Fitting":
        return cls(config.resolution, multiple, config.buckets, config.max_crop)

    @cached_property
    def sizes(self) -> list[Size]:
        """The square, or all sizes in whole multiples with about its pixels, up to four times as wide as high."""
        side, multiple = self.resolution, self.multiple
        if not self.buckets:
            return [(side, side)]
        found = [(width, side * side // width // multiple * multiple) for width in range(multiple, 4 * side, multiple)]
        return [(w, h) for w, h in found if h and max(w, h) <= MAX_RATIO * min(w, h)]

    def bucket(self, size: Size) -> Size:
        """The size that keeps the most of a picture."""
        return min(self.sizes, key=lambda bucket: lost_area(size, bucket))

    def problem(self, size: Size) -> tuple[str, str] | None:
        """What is wrong with a picture of this size, as the kind of error and its numbers."""
        bucket = self.bucket(size)
        if size[0] < bucket[0] or size[1] < bucket[1]:
            return "too small", f"{size[0]}x{size[1]} would be enlarged to {bucket[0]}x{bucket[1]}"
        if self.buckets and (lost := lost_area(size, bucket)) > self.max_crop:
            return "too narrow", f"{size[0]}x{size[1]} would lose {lost:.0%} of its area, over {self.max_crop:.0%}"
        return None


def lost_area(size: Size, bucket: Size) -> float:
    """The share of a picture's area that lies outside, scaled to cover the bucket."""
    ratio = size[0] * bucket[1] / (size[1] * bucket[0])
    return 1 - min(ratio, 1 / ratio)


def views(size: Size, bucket: Size, config: DataConfig, seed: str) -> list[View]:
    """The cuts of one picture: the middle, or a few places drawn from `seed`; then the same mirrored if asked."""
    places = [(0.5, 0.5)]
    if config.crop == "random" and lost_area(size, bucket) > 0:
        rng = random.Random(seed)
        places = [(rng.random(), rng.random()) for _ in range(RANDOM_CROPS)]
    sides = (False, True) if config.flip else (False,)
    return [View(bucket, place, mirrored, config.background) for mirrored in sides for place in places]
