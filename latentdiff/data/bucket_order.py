"""`BucketOrder`: the endless random order of the rows of one bucket, with a minimum distance between repeats."""

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import accumulate

import numpy as np


class BucketOrder:
    """The row of each draw, as a pure function of the seed and the draw.

    Draws are grouped in rounds. A picture with the most rows appears once in every round, one with half as many rows in
    every other round. If all pictures have equally many rows, repeats of one are at least `window` draws apart.

    rows: the rows of the bucket. pictures: the picture of each row. key: seed. window: at most the number of pictures.
    """

    def __init__(self, rows: Sequence[int], pictures: Sequence[Hashable], key: tuple[int, ...], window: int) -> None:
        grouped: dict[Hashable, list[int]] = {}
        for row, picture in zip(rows, pictures, strict=True):
            grouped.setdefault(picture, []).append(row)
        self.rows = list(grouped.values())
        self.key = key
        counts = np.array([len(group) for group in self.rows])
        self.repeats = counts // math.gcd(*counts.tolist())
        self.rounds = int(self.repeats.max())
        self.phases = np.arange(len(self.rows)) % self.rounds
        sizes = [len(self._members(k)) for k in range(self.rounds)]
        self.ends = list(accumulate(sizes))
        self.window = min(window, len(self.rows))
        self.shuffles_all = 2 * self.window <= min(sizes)
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, draw: int) -> int:
        lap, place = divmod(draw, self.ends[-1])
        k = bisect_right(self.ends, place)
        picture = self._order(lap * self.rounds + k)[place - (self.ends[k - 1] if k else 0)]
        before = (k * self.repeats[picture] + self.phases[picture]) // self.rounds  # appearances in this lap
        return self.rows[picture][(lap * self.repeats[picture] + before) % len(self.rows[picture])]

    def _members(self, k: int) -> np.ndarray:
        """The pictures of round k of a lap; a picture with n repeats appears in n rounds, evenly spaced."""
        before, after = (((k + j) * self.repeats + self.phases) // self.rounds for j in (0, 1))
        return np.flatnonzero(after > before)

    def _order(self, k: int) -> np.ndarray:
        """The pictures of round k in the order of their draws. The last two orders are cached."""
        if k not in self._orders:
            self._orders[k] = self._late_returns(k) if self.shuffles_all else self._shuffled_blocks(k)
            while len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[k]

    def _shuffled(self, k: int) -> np.ndarray:
        return np.random.default_rng((*self.key, k)).permutation(self._members(k % self.rounds))

    def _late_returns(self, k: int) -> np.ndarray:
        """A new permutation, whose last pictures are preceded by the last `window` of the previous round.

        The last `window` stay as they were drawn, so that a round depends only on the permutation before it.
        """
        order = self._shuffled(k)
        if k == 0 or self.window < 2:
            return order
        head, tail = order[: -self.window], order[-self.window :]
        recent = self._shuffled(k - 1)[-self.window :]
        returning = recent[np.isin(recent, head)]
        return np.concatenate([head[~np.isin(head, recent)], returning, tail])

    def _shuffled_blocks(self, k: int) -> np.ndarray:
        """One permutation for all rounds, reshuffled within blocks so short that a picture stays near its position."""
        base = np.random.default_rng(self.key).permutation(len(self.rows))
        order = base[np.isin(base, self._members(k % self.rounds))]
        rng, length = np.random.default_rng((*self.key, k)), len(self.rows) - self.window + 1
        return np.concatenate([rng.permutation(order[i : i + length]) for i in range(0, len(order), length)])
