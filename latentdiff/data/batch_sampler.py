"""Batch sampler: the rows of a step are a pure function of the seed and the step, so training can start at any step."""

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import count

import torch

from latentdiff.data.bucket_order import BucketOrder
from latentdiff.data.bucket_plan import chunk_size, count_buckets


class Batches(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of (row, draw) for one of `world` processes, from optimiser step `start` on.

    Step s takes draws [s * G, (s + 1) * G), where G = batch_size * accumulation * world. For equal G the rows are
    equal, however a step is split. A step draws chunks of rows from one bucket each, in proportion to the rows of each
    bucket, with min(G, pictures) distinct pictures. A micro-batch contains rows of one bucket: if chunks are smaller
    than `batch_size`, the step has more and smaller micro-batches.

    buckets, pictures: one per row; without `pictures`, each row is a different picture.
    micro_batch: rows per micro-batch. passes: micro-batches per step in each process.
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
        pictures: Sequence[Hashable] | None = None,
    ) -> None:
        pictures = range(len(buckets)) if pictures is None else pictures
        self.start, self.rank, self.world = start, rank, world
        self.batch = batch_size * accumulation * world
        counts = count_buckets(buckets, pictures)
        self.chunk = chunk_size(counts, self.batch)
        self.micro_batch = math.gcd(batch_size, self.chunk)
        self.passes = accumulation * batch_size // self.micro_batch
        self.shares = [counts[bucket].rows for bucket in sorted(counts)]
        chunks = self.batch // self.chunk
        self.orders = []
        for k, bucket in enumerate(sorted(counts)):
            rows = [row for row, other in enumerate(buckets) if other == bucket]
            most = -(-chunks * self.shares[k] // len(buckets)) * self.chunk  # that one step draws from it
            self.orders.append(BucketOrder(rows, [pictures[row] for row in rows], (seed, k), most))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        drawn = [0] * len(self.orders)  # chunks so far
        for step in count():
            chunks = self._chunks_of_step(step, drawn)
            if step >= self.start:
                rows = [
                    order[first * self.chunk + k]
                    for order, first, times in zip(self.orders, drawn, chunks, strict=True)
                    for k in range(times * self.chunk)
                ]
                yield from self._micro_batches(list(zip(rows, count(step * self.batch), strict=False)))
            drawn = [before + times for before, times in zip(drawn, chunks, strict=True)]

    def _chunks_of_step(self, step: int, drawn: Sequence[int]) -> list[int]:
        """Chunks per bucket: its share rounded down, plus one for the buckets that are furthest behind their share."""
        total, chunks = sum(self.shares), self.batch // self.chunk
        given = [chunks * share // total for share in self.shares]
        behind = {
            k: chunks * share * (step + 1) - (drawn[k] + given[k]) * total
            for k, share in enumerate(self.shares)
            if chunks * share % total
        }
        for k in sorted(behind, key=behind.__getitem__, reverse=True)[: chunks - sum(given)]:
            given[k] += 1
        return given

    def _micro_batches(self, items: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """The micro-batches of this process; processes take them in turn."""
        for k in range(self.passes):
            begin = (k * self.world + self.rank) * self.micro_batch
            yield items[begin : begin + self.micro_batch]
