"""Join small buckets, and choose how many pictures of one bucket a step draws together.

A step draws `chunk` pictures from one bucket, then `chunk` from the same or another one. All of this depends only on
the global batch and the pictures, so that training is the same for every split over processes and micro-batches.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from latentdiff.data.buckets import Fitting, Size

ENOUGH = 16  # pictures in a chunk: larger chunks are hardly faster
JOINING_COST = 0.05  # the average cost of joining buckets that is accepted for chunks of up to ENOUGH
LARGE_COST = 0.005  # the same for larger chunks

Bucket = TypeVar("Bucket", bound=Hashable)


@dataclass(frozen=True)
class Counts:
    """Numbers of pictures and rows of a bucket; a picture with ten repeats per epoch has ten rows."""

    pictures: int = 0
    rows: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.pictures + other.pictures, self.rows + other.rows)


def chunk_size(buckets: dict[Bucket, Counts], batch: int) -> int:
    """The largest divisor of the batch with which every step draws distinct pictures from each bucket."""
    return next(chunk for chunk in _divisors(batch) if chunk == 1 or not _too_small(buckets, chunk, batch))


def join_buckets(sizes: Sequence[Size], repeats: Sequence[int], fitting: Fitting, batch: int) -> dict[Size, Size]:
    """The bucket for each picture size: its own, or a neighbour's if its own has too few pictures.

    sizes: of the pictures. repeats: how often each occurs in an epoch. batch: pictures in a step, over all processes.
    """
    counts: dict[Size, Counts] = {}
    for size, times in zip(sizes, repeats, strict=True):
        counts[size] = counts.get(size, Counts()) + Counts(1, times)
    for chunk in _divisors(batch):
        joined = _joined(counts, fitting, chunk, batch)
        extra = sum(
            (fitting.cost(size, bucket) - fitting.cost(size, fitting.bucket(size))) * counts[size].pictures
            for size, bucket in joined.items()
        )
        if extra <= (JOINING_COST if chunk <= ENOUGH else LARGE_COST) * len(sizes):
            return joined
    raise AssertionError("with chunks of 1 nothing is joined")


def _joined(counts: dict[Size, Counts], fitting: Fitting, chunk: int, batch: int) -> dict[Size, Size]:
    joined = {size: fitting.bucket(size) for size in counts}
    while chunk > 1:
        buckets: dict[Size, Counts] = {}
        for size, bucket in joined.items():
            buckets[bucket] = buckets.get(bucket, Counts()) + counts[size]
        small = _too_small(buckets, chunk, batch)
        if not small or len(buckets) == 1:
            break
        smallest = min(small, key=lambda bucket: buckets[bucket].pictures)
        others = [bucket for bucket in buckets if bucket != smallest]
        joined |= {size: _cheapest(size, others, fitting) for size, bucket in joined.items() if bucket == smallest}
    return joined


def _cheapest(size: Size, buckets: Sequence[Size], fitting: Fitting) -> Size:
    return min(buckets, key=lambda bucket: fitting.cost(size, bucket))


def _too_small(buckets: dict[Bucket, Counts], chunk: int, batch: int) -> list[Bucket]:
    """Buckets from which a step would draw a picture twice, or would omit one of a folder smaller than the batch.

    A step draws a bucket's share of its chunks, rounded down or up.
    """
    total = sum(buckets.values(), start=Counts())
    chunks = batch // chunk
    if len(buckets) == 1:
        return []
    if batch <= total.pictures:
        return [b for b, of in buckets.items() if -(-chunks * of.rows // total.rows) * chunk > of.pictures]
    return [b for b, of in buckets.items() if chunks * of.rows // total.rows * chunk < of.pictures]


def _divisors(number: int) -> list[int]:
    return [k for k in range(number, 0, -1) if number % k == 0]


def count_buckets(buckets: Sequence[Bucket], pictures: Sequence[Hashable]) -> dict[Bucket, Counts]:
    """Pictures and rows of each bucket, from the bucket and the picture of every row."""
    rows = Counter(buckets)
    distinct = Counter(bucket for bucket, _ in dict.fromkeys(zip(buckets, pictures, strict=True)))
    return {bucket: Counts(distinct[bucket], rows[bucket]) for bucket in rows}
