"""Judges that classify pictures: a CLIP model, nearest class centroids of concepts, and a linear probe of styles."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from examples.emoji import textures as drawn_how
from examples.emoji.captions import with_article
from examples.emoji.pairs import Corpus, Picture, file_names, pixels_of
from examples.emoji.textures import Change
from latentdiff.files import atomic_path
from latentdiff.metrics.clip import Clip
from latentdiff.metrics.features import FeatureNetwork

CANDIDATES = 100
RIDGE = 0.1
JUDGE = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, drawn_how.__file__))).hexdigest()[:12]
"""Identifies cached measurements: the contents of this file and of textures.py."""


@dataclass(frozen=True)
class Seen:
    """Pictures uint8 [N, 3, R, R] and their features [N, D]; `textures` and `image` only if they were computed."""

    pixels: Tensor
    features: Tensor
    textures: Tensor | None = None
    image: Tensor | None = None


@torch.no_grad()
def look(
    batches: Iterable[Tensor],
    network: FeatureNetwork,
    textures: FeatureNetwork | None = None,
    clip: Clip | None = None,
    what: str = "looking",
) -> Seen:
    """Compute features in one pass over batches of uint8 [B, 3, R, R]."""
    pixels, features, drawn, image = [], [], [], []
    for batch in tqdm(batches, desc=what, disable=None, leave=False):
        pixels.append(batch)
        features.append(network.embed(batch)["features"].float().cpu())
        if textures is not None:
            drawn.append(textures.embed(batch)["features"].float().cpu())
        if clip is not None:
            image.append(F.normalize(clip.embed_images(batch).float().cpu()))
    kept = [torch.cat(parts) if parts else None for parts in (drawn, image)]
    return Seen(torch.cat(pixels), torch.cat(features), *kept)


def features_of(
    folder: Path, pictures: Sequence[Picture], network: FeatureNetwork, change: Change | None = None
) -> Tensor:
    """Features [N, D] of pictures of the corpus, or of modified ones; cached in `folder` for the next command."""
    names = [*file_names(folder, pictures), *([change.__name__] if change else [])]
    digest = hashlib.sha256("\n".join([JUDGE, network.name, network.weights, *names]).encode()).hexdigest()[:12]
    kept = folder / f"features-{digest}.safetensors"
    if not kept.is_file():
        generator = torch.Generator().manual_seed(0)
        batches = (change(batch, generator) if change else batch for batch in pixels_of(pictures))
        features = look(batches, network, what="training pictures").features
        with atomic_path(kept) as partial:
            save_file({"features": features}, partial)
    return load_file(kept)["features"]


@dataclass(frozen=True)
class Probe:
    """A linear classifier on standardised features. weight: [D + 1, K], with the bias in the last row."""

    mean: Tensor
    std: Tensor
    weight: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Classify features [N, D]: [N]."""
        return self.logits(features).argmax(1)

    def logits(self, features: Tensor) -> Tensor:
        x = (features.double() - self.mean) / self.std
        return x @ self.weight[:-1] + self.weight[-1]


def fit_probe(features: Tensor, labels: Tensor, ridge: float = RIDGE) -> Probe:
    """Multinomial logistic regression of labels [N] on features [N, D]: mean cross-entropy + ridge / 2 |weight|^2."""
    std, mean = torch.std_mean(features.double(), 0)
    weight = torch.zeros(features.shape[1] + 1, int(labels.max()) + 1, dtype=torch.float64, requires_grad=True)
    probe = Probe(mean, std.clamp_min(1e-8), weight)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe.logits(features), labels) + ridge / 2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probe(mean, probe.std, weight.detach())


def pools(concepts: Sequence[str], others: Sequence[str], count: int = CANDIDATES) -> list[list[str]]:
    """Candidates for each concept: itself, then `count` - 1 of `others`; a fixed function of the words."""
    found = []
    for concept in concepts:
        rest = sorted(set(others) - {concept})
        drawn = random.Random(f"candidates/{concept}").sample(rest, min(count, len(set(others))) - 1)
        found.append([concept, *drawn])
    return found


def first_of(similarity: Tensor, pool: Tensor) -> Tensor:
    """Whether the first candidate has the strictly highest similarity: [N]. similarity: [N, C]; pool: [N, K]."""
    among = similarity.gather(1, pool)
    return among[:, 0] > among[:, 1:].max(1).values


class Judges:
    """The models trained on the training pictures, and the words of the candidates.

    features: [N, D]; textures: [V, N, S] of V views of each: unchanged, and with nearly invisible modifications.
    """

    def __init__(self, corpus: Corpus, features: Tensor, textures: Tensor, clip: Clip | None) -> None:
        self.trained = sorted({picture.concept for picture in corpus.train})
        self.concepts = [*self.trained, *sorted({picture.concept for picture in corpus.whole} - set(self.trained))]
        self.index = {concept: k for k, concept in enumerate(self.concepts)}
        self.pool = torch.tensor([[self.index[c] for c in pool] for pool in pools(self.concepts, self.trained)])
        self.styles = sorted({picture.style for picture in corpus.train})
        style = self._styles(corpus.train)
        self.probe = fit_probe(textures.flatten(0, 1), style.repeat(len(textures)))
        self.style_means = torch.stack([features[style == k].mean(0) for k in range(len(self.styles))])
        own = torch.tensor([self.index[picture.concept] for picture in corpus.train])
        shape = self._shape(features, style)
        sums = torch.zeros(len(self.trained), shape.shape[1]).index_add(0, own, shape)
        self.centroids = F.normalize(sums)
        self.texts = None if clip is None else self._texts(clip)

    def hits(self, seen: Seen, asked: Sequence[Picture]) -> dict[str, Tensor]:
        """For each judge, whether it classifies picture k as the content of `asked[k]`: float64 [N] of 0 and 1.

        `clip` and `centroid` choose the concept among the candidates, the latter only among those that it was trained
        on; `style` among all styles.
        """
        style, own = self._styles(asked), torch.tensor([self.index[picture.concept] for picture in asked])
        found = {} if seen.textures is None else {"style": self.probe(seen.textures) == style}
        if self.texts is not None and seen.image is not None:
            found["clip"] = first_of(seen.image @ self.texts.T, self.pool[own])
        if int(own.max()) < len(self.trained):
            similarity = self._shape(seen.features, style) @ self.centroids.T
            found["centroid"] = first_of(similarity, self.pool[own])
        return {name: values.double() for name, values in found.items()}

    def _styles(self, pictures: Sequence[Picture]) -> Tensor:
        return torch.tensor([self.styles.index(picture.style) for picture in pictures])

    def _shape(self, features: Tensor, style: Tensor) -> Tensor:
        """Normalised features minus the mean of their style, which emphasises the concept."""
        return F.normalize(features - self.style_means[style])

    @torch.no_grad()
    def _texts(self, clip: Clip) -> Tensor:
        captions = [with_article(concept) for concept in self.concepts]
        parts = [clip.embed_text(captions[k : k + 256]).float().cpu() for k in range(0, len(captions), 256)]
        return F.normalize(torch.cat(parts))
