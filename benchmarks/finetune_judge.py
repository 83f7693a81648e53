"""Judge the concepts and the style of the pictures of a fine-tune."""

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from examples.emoji.judges import Probe, fit_probe
from examples.emoji.pairs import read_rows
from examples.emoji.textures import HARDLY_SEEN, texture_network
from latentdiff.checkpoints.components import read_vae
from latentdiff.checkpoints.locate_model import locate
from latentdiff.metrics.features import FeatureNetwork, feature_network

SIDE = 128


class Judge:
    """Judges trained on real pictures of `concepts` in all sets; the first `prompted` concepts are generated."""

    def __init__(self, corpus: Path, concepts: Sequence[str], prompted: int) -> None:
        self.network, self.textures = feature_network(device="cpu"), texture_network("cpu")
        self.prompted = prompted
        self.real = {(p.concept, p.style): p.path for p in read_rows(corpus / "train") if p.concept in concepts}
        features = _features(self.network, pixels(list(self.real.values())))
        label = torch.tensor([concepts.index(concept) for concept, _ in self.real])
        self.mean = features.mean(0)
        self.centroids = torch.stack([features[label == k].mean(0) - self.mean for k in range(len(concepts))])
        self.probe = cache(self._probe)

    def recognised(self, files: Sequence[Path]) -> float:
        """The share of pictures, round by round one of each prompted concept, whose own concept is the nearest.

        The mean of the set takes the place of the mean over all sets, so that a style does not count as a concept.
        """
        features = _features(self.network, pixels(files))
        centred = F.normalize(features - features.mean(0) + self.centroids[: self.prompted].mean(0))
        nearest = (centred @ F.normalize(self.centroids).T).argmax(1)
        return (nearest == torch.arange(len(features)) % self.prompted).float().mean().item()

    def cosine(self, files: Sequence[Path], folder: Path) -> float:
        """The mean cosine of the pictures' features to the mean of the folder's, both without the corpus' mean."""
        subject = _features(self.network, pixels(sorted(folder.glob("*.png")))).mean(0) - self.mean
        drawn = _features(self.network, pixels(files)) - self.mean
        return F.cosine_similarity(drawn, subject[None]).mean().item()

    def in_style(self, files: Sequence[Path], folders: Path, name: str) -> float:
        """The share of pictures that the probe assigns to the style of the folder `name`."""
        features = _features(self.textures, pixels(files))
        return self.probe(folders, name)(features).float().mean().item()

    def _probe(self, folders: Path, name: str) -> Probe:
        """A probe for the style of a folder against the sets of the corpus, on pictures after encoding and decoding by
        the VAE.
        """
        own = [path for part in (name, f"{name}-unseen") for path in sorted((folders / part).glob("*.png"))]
        other = torch.tensor([style != name for _, style in self.real])
        features = [self._views(own), *(view[other] for view in self.others)]
        label = torch.cat([torch.full((len(part),), int(k == 0)) for k, part in enumerate(features)])
        return fit_probe(torch.cat(features), label)

    @cached_property
    def others(self) -> list[Tensor]:
        """Features [N, D] of the corpus' pictures, of each view."""
        return list(self._views(list(self.real.values())).chunk(1 + len(HARDLY_SEEN)))

    def _views(self, files: Sequence[Path]) -> Tensor:
        """Features [V * N, D] of pictures after encoding and decoding by the VAE, and of nearly invisible modifications
        of them.
        """
        seen, generator = through_vae(pixels(files)), torch.Generator().manual_seed(0)
        views = [seen, *(change(seen, generator) for change in HARDLY_SEEN)]
        return torch.cat([_features(self.textures, view) for view in views])


def pixels(files: Sequence[Path]) -> Tensor:
    """uint8 [N, 3, 128, 128]: the middle square of each picture."""
    return torch.stack([_square(Image.open(file).convert("RGB")) for file in files])


def _square(image: Image.Image) -> Tensor:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


@torch.no_grad()
def through_vae(images: Tensor) -> Tensor:
    """uint8 pictures, encoded and decoded by the bundled model's VAE."""
    vae = read_vae(locate(None) / "vae")
    decoded = [vae.decode(vae.encode(part.float() / 127.5 - 1).mean).clamp(-1, 1) for part in images.split(16)]
    return ((torch.cat(decoded) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def _features(network: FeatureNetwork, images: Tensor) -> Tensor:
    return torch.cat([network.embed(part)["features"].float() for part in images.split(16)])
