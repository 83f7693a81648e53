"""What every measurement of a model needs: the corpus, those who judge, and the model itself."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from examples.emoji.judges import Judges, Seen, features_of, look
from examples.emoji.pairs import Corpus, read_corpus
from latentdiff.metrics.clip import Clip, open_clip
from latentdiff.metrics.features import FeatureNetwork, feature_network
from latentdiff.pipeline import LatentDiffusionPipeline


@dataclass(frozen=True)
class Bench:
    """`train_features` [N, D] are of `corpus.train`, which taught `judges`."""

    corpus: Corpus
    train_features: Tensor
    judges: Judges
    network: FeatureNetwork
    clip: Clip
    pipe: LatentDiffusionPipeline

    def see(self, batches: Iterable[Tensor], what: str = "looking") -> Seen:
        """Features and embeddings of pictures uint8 [B, 3, R, R] a batch."""
        return look(batches, self.network, self.clip, what)


def open_bench(given: argparse.Namespace) -> Bench:
    """Read the corpus, teach the judges, open the model. Raises InputError, CheckpointError."""
    corpus = read_corpus(given.corpus, given.groups, given.styles)
    pipe = LatentDiffusionPipeline.from_pretrained(given.model)
    clip, network = open_clip(given.judge, pipe.device), feature_network()
    features = features_of(given.corpus, corpus.train, network)
    return Bench(corpus, features, Judges(corpus, features, clip), network, clip, pipe)
