"""Which rows make up which batch: a pure function of the seed and the step, so any step can be the first."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import torch


class Batches(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of (row, draw) for one of `world` processes, from optimiser step `start` on.

    Step s takes draws [s * G, (s + 1) * G), G = batch_size * accumulation * world, all from rows of one bucket:
    `buckets` holds the bucket of each row. A bucket comes up as often as its share of the rows asks; its rows come in
    a new permutation each time it has been walked through.
    """

    def __init__(
        self,
        buckets: Sequence[int],
        batch_size: int,
        seed: int,
        start: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.members = [[row for row, b in enumerate(buckets) if b == bucket] for bucket in sorted(set(buckets))]
        self.batch_size, self.accumulation, self.seed = batch_size, accumulation, seed
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.batch_size * self.accumulation * self.world
        rows = sum(map(len, self.members))
        steps_of = [0] * len(self.members)
        for step in count():
            owed = [len(m) / rows * (step + 1) - done for m, done in zip(self.members, steps_of, strict=True)]
            bucket = owed.index(max(owed))
            first = steps_of[bucket] * size
            steps_of[bucket] += 1
            if step >= self.start:
                items = [(self._row(bucket, first + k), step * size + k) for k in range(size)]
                yield from self._shares(items)

    def _shares(self, items: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        for micro in range(self.accumulation):
            begin = (micro * self.world + self.rank) * self.batch_size
            yield items[begin : begin + self.batch_size]

    def _row(self, bucket: int, draw: int) -> int:
        members = self.members[bucket]
        epoch, place = divmod(draw, len(members))
        return members[_permutation(len(members), self.seed, bucket, epoch)[place]]


@lru_cache(maxsize=64)
def _permutation(length: int, seed: int, bucket: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 1_000 + bucket)
    return torch.randperm(length, generator=generator).tolist()
