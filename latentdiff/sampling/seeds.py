"""Seeds, their random generators, and validation of integers."""

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentdiff.errors import InputError

SEEDS = 2**63
GENERATOR_SEEDS = 2**32  # torch's CPU generator reads no more of a seed
STATE_OFFSET, STATE_WORDS = 24, 624  # of the Mersenne Twister in the bytes of the generator's state


def seeds_per_image(seed: int | Sequence[int] | None, count: int, name: str = "seed", step: int = 1) -> list[int]:
    """The seed of each image: consecutive from one seed, random if None. Raises InputError for invalid seeds.

    step: difference between consecutive seeds; 0 gives all images the same seed.
    """
    if seed is None:
        first = secrets.randbelow(GENERATOR_SEEDS)
        return [first + step * k for k in range(count)]
    if isinstance(seed, Sequence | np.ndarray | Tensor) and not isinstance(seed, str) and np.ndim(seed):
        if len(seed) != count:
            raise InputError(f"{name} has {len(seed)} numbers for {count} images; give as many, or one for all")
        return [whole(one, name, 0, SEEDS - 1) for one in seed]
    first = whole(seed, name, 0, SEEDS - 1)
    return [whole(first + step * k, name, 0, SEEDS - 1) for k in range(count)]


def generator_for(seed: int) -> torch.Generator:
    """A CPU generator for a seed of up to 63 bits.

    `manual_seed` reads 32 bits; above, the whole state follows from the seed (O'Neill 2015, as NumPy's SeedSequence).
    """
    generator = torch.Generator().manual_seed(seed % GENERATOR_SEEDS)
    if seed >= GENERATOR_SEEDS:
        words = np.random.SeedSequence(seed).generate_state(STATE_WORDS).astype(np.uint64)
        state = generator.get_state()
        state[STATE_OFFSET : STATE_OFFSET + 8 * STATE_WORDS] = torch.from_numpy(words.view(np.uint8))
        generator.set_state(state)
    return generator


def whole(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> int:
    """An integer of any type, including numpy's and torch's. Raises InputError for other values and out of range."""
    try:
        number = int(value)
        exact = not isinstance(value, str | bytes | bool) and number == value
    except (TypeError, ValueError, OverflowError, RuntimeError):
        exact = False
    if not exact:
        raise InputError(f"{name}={value!r} must be a whole number; try 1")
    if not low <= number <= high:
        rule = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"{name}={number} must be {rule}; try {min(max(number, low), high)}")
    return number
