"""Class score: the formula of the Inception Score with any classifier."""

import math
from typing import Any

from latentdiff.metrics.check_arguments import as_rows


def class_score(logits: Any) -> float:
    """exp of the mean KL divergence between a picture's class probabilities and their mean: 1 is worst, C is best.

    logits: [N, C]. With FID's Inception network this is the Inception Score with one split.
    Salimans et al. 2016, "Improved Techniques for Training GANs", section 4. Raises InputError, NonFiniteError.
    """
    log_each = as_rows(logits, "logits").log_softmax(1)
    log_mean = log_each.logsumexp(0) - math.log(len(log_each))
    return float((log_each.exp() * (log_each - log_mean)).sum(1).mean().exp())
