"""Agreement of pictures with their captions, measured with a CLIP model."""

from typing import Any

import torch
from torch import Tensor

from latentdiff.metrics.check_arguments import as_pairs

AT_ONCE = 1024
EQUAL = 1e-6  # embeddings of one caption computed in different batches have cosines closer than this


def alignment(image: Any, text: Any) -> float:
    """Mean cosine between pictures' and their captions' embeddings, [N, D] each: -1 to 1.

    CLIPScore is 2.5 times this where it is positive: Hessel et al. 2021, "CLIPScore", eq. 1. Raises InputError,
    NonFiniteError.
    """
    first, second = as_pairs(image, text)
    return float((first * second).sum(1).mean())


def retrieval(image: Any, text: Any, candidates: int = 100, seed: int = 0) -> dict[str, float]:
    """`r1`, `r5`: how often a picture's own caption ranks first, or among the first five, of `candidates` captions.

    R-precision of Xu et al. 2018, "AttnGAN", section 4. If there are fewer captions, all are candidates. Raises
    InputError, NonFiniteError.
    """
    return precision_at(caption_ranks(image, text, candidates, seed))


def precision_at(rank: Tensor) -> dict[str, float]:
    """The shares of ranks [N] that are the first, and among the first five."""
    return {"r1": (rank < 1).double().mean().item(), "r5": (rank < 5).double().mean().item()}


def caption_ranks(image: Any, text: Any, candidates: int, seed: int) -> Tensor:
    """The number of other captions that match a picture better than its own, [N]; 0 is best.

    The other captions are drawn with `seed`; captions equal to the picture's own are excluded.
    """
    first, second = as_pairs(image, text)
    count = len(first)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first, second = first[order], second[order]
    around = torch.arange(min(candidates, count))
    ranks = []
    for rows in torch.arange(count).split(AT_ONCE):
        pool = (rows[:, None] + around) % count  # own caption first, then those of the pictures drawn after it
        similarity = (first[rows] @ second.T).gather(1, pool)
        ranks.append((similarity > similarity[:, :1] + EQUAL).sum(1))
    return torch.cat(ranks)[order.argsort()]
