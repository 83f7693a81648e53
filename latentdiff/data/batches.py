"""Which rows make up which batch: a pure function of the seed and the step, so any step can be the first."""

from collections.abc import Iterator

import torch


class Batches(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Endless batches of (row, draw) for one of `world` processes, from batch `start` on.

    The stream of draws walks through one permutation of the rows an epoch; batch b of all processes together takes
    draws [b * batch_size * world, (b + 1) * batch_size * world).
    """

    def __init__(self, count: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        batch = self.start * self.world + self.rank
        while True:
            items = []
            for draw in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                if draw // self.count != epoch:
                    epoch = draw // self.count
                    order = self._permutation(epoch)
                items.append((order[draw % self.count], draw))
            yield items
            batch += self.world

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=generator).tolist()
