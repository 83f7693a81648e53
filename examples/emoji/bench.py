"""Load the corpus, the judges and the model that a measurement needs."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.emoji.judges import Judges, Seen, features_of, look
from examples.emoji.pairs import Corpus, read_corpus
from examples.emoji.textures import HARDLY_SEEN, texture_network
from latentdiff.metrics.clip import Clip, open_clip
from latentdiff.metrics.features import FeatureNetwork, feature_network
from latentdiff.pipeline import LatentDiffusionPipeline


@dataclass(frozen=True)
class Bench:
    """Corpus, judges and model. train_features: [N, D] of `corpus.train`, on which `judges` were trained."""

    corpus: Corpus
    train_features: Tensor
    judges: Judges
    network: FeatureNetwork
    textures: FeatureNetwork
    clip: Clip | None
    pipe: LatentDiffusionPipeline

    @property
    def folder(self) -> Path:
        """The origin of the model."""
        assert self.pipe.folder is not None
        return self.pipe.folder

    def see(self, batches: Iterable[Tensor], what: str = "looking") -> Seen:
        """Features and embeddings of batches of pictures, uint8 [B, 3, R, R]."""
        return look(batches, self.network, self.textures, self.clip, what)


def open_bench(given: argparse.Namespace) -> Bench:
    """Read the corpus, train the judges and open the model. Raises InputError, CheckpointError."""
    corpus = read_corpus(given.corpus, given.groups, given.styles)
    pipe = LatentDiffusionPipeline.from_pretrained(given.model)
    clip = None if given.judge is None else open_clip(given.judge, pipe.device)
    network, textures = feature_network(), texture_network()
    features = features_of(given.corpus, corpus.train, network)
    drawn = torch.stack([features_of(given.corpus, corpus.train, textures, how) for how in (None, *HARDLY_SEEN)])
    return Bench(corpus, features, Judges(corpus, features, drawn, clip), network, textures, clip, pipe)
