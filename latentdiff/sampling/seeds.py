"""Seeds of images, their random generators, and the noise that these draw."""

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentdiff.device_transfer import send
from latentdiff.errors import InputError, check_integer

SEEDS = 2**63
GENERATOR_SEEDS = 2**32  # torch's CPU generator reads no more of a seed
STATE_OFFSET, STATE_WORDS = 24, 624  # of the Mersenne Twister in the bytes of the generator's state


def seeds_per_image(seed: int | Sequence[int] | None, count: int, name: str = "seed", step: int = 1) -> list[int]:
    """The seed of each image: consecutive from one seed, random if None. Raises InputError for invalid seeds.

    step: difference between the seeds of consecutive images; 0 gives all images the same seed.
    """
    if seed is None:
        first = secrets.randbelow(GENERATOR_SEEDS)
        return [first + step * k for k in range(count)]
    if isinstance(seed, Sequence | np.ndarray | Tensor) and not isinstance(seed, str) and np.ndim(seed):
        if len(seed) != count:
            raise InputError(f"{name} has {len(seed)} numbers for {count} images; pass one per image, or one for all")
        return [check_integer(one, name, 0, SEEDS - 1) for one in seed]
    first = check_integer(seed, name, 0, SEEDS - 1)
    return [check_integer(first + step * k, name, 0, SEEDS - 1) for k in range(count)]


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


def draw_noise(generators: Sequence[torch.Generator | None], shape: torch.Size, like: Tensor) -> Tensor:
    """Noise [B, *shape] with the dtype and device of `like`, drawn on the CPU by one generator per image; 0 for None.

    For CUDA it is copied asynchronously from pinned memory.
    """
    zeros = torch.zeros(shape)
    drawn = torch.stack([zeros if g is None else torch.randn(shape, generator=g) for g in generators])
    return send(drawn, like.device).to(like)
