"""Classify parts by the objects of the vocabulary, with a measured accuracy on held-out real pictures."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from examples.emoji.concepts import chance
from examples.emoji.judges import Probe, fit_probe
from examples.emoji.part_views import CODE, views_of
from examples.emoji.parts import Pixels, find_parts
from examples.emoji.split import SAME_DRAWING
from examples.emoji.sprites import Sprite
from examples.emoji.vocabulary import Word
from latentdiff.files import atomic_path
from latentdiff.metrics.features import FeatureNetwork, open_efficientnet
from latentdiff.runtime.device import pick_device

HELD_OUT_DRAWINGS = 0.15
RIDGE = 0.005
BATCH = 64


@dataclass(frozen=True)
class Seen:
    """A classified part: its object, its colour, and its centroid (x, y) in [0, 1]."""

    concept: str
    colour: str
    centre: tuple[float, float]


@dataclass(frozen=True)
class PartClassifier:
    """Classifies parts. accuracy: on views of `drawings` real pictures that were held out from its training."""

    concepts: tuple[str, ...]
    network: FeatureNetwork
    probe: Probe
    accuracy: float
    drawings: int

    def see(self, pictures: Sequence[Pixels]) -> list[list[Seen]]:
        """Find and classify the parts of each picture [H, W, 3], the largest first."""
        found = [find_parts(picture) for picture in pictures]
        parts = [part for one in found for part in one]
        if not parts:
            return [[] for _ in found]
        features = _embed(self.network, [part.crop for part in parts])
        named = iter([self.concepts[k] for k in self.probe(features).tolist()])
        return [[Seen(next(named), part.colour, part.centre) for part in one] for one in found]


def part_network() -> FeatureNetwork:
    """EfficientNet-Lite0 without resizing of crops. embed: uint8 [B, 3, R, R] to pooled features [B, 1280]."""
    device = pick_device("auto")
    model, file = open_efficientnet(device)
    model.to(memory_format=torch.channels_last)

    def embed(pixels: Tensor) -> dict[str, Tensor]:
        scaled = (pixels.to(device).float() - 127) / 128
        maps = model.extract_features(scaled.contiguous(memory_format=torch.channels_last))
        return {"features": maps.mean((2, 3))}

    return FeatureNetwork("efficientnet-lite0 of parts", file, False, embed)


def teach_classifier(
    words: Sequence[Word], sprites: Sequence[Sprite], network: FeatureNetwork, cache: Path
) -> PartClassifier:
    """Train on views of the vocabulary's sprites in all styles; their features are cached in the folder `cache`."""
    concepts = tuple(word.concept for word in words)
    own = [sprite for sprite in sprites if sprite.concept in concepts and sprite.is_single]
    features, seen = _features(own, network, cache)
    labels = torch.tensor([concepts.index(own[k].concept) for k in seen.tolist()])
    held_out = torch.tensor([is_held_out_drawing(sprite) for sprite in own])[seen]
    probe = fit_probe(features[~held_out], labels[~held_out], RIDGE)
    right = (probe(features[held_out]) == labels[held_out]).double().mean().item()
    return PartClassifier(concepts, network, probe, right, sum(map(is_held_out_drawing, own)))


def is_held_out_drawing(sprite: Sprite) -> bool:
    """Whether this picture is held out from the classifier; emoji sets that share a drawing are treated alike."""
    style = SAME_DRAWING.get(sprite.style, sprite.style)
    return chance("classifier", sprite.concept, style) < HELD_OUT_DRAWINGS


def _features(sprites: Sequence[Sprite], network: FeatureNetwork, cache: Path) -> tuple[Tensor, Tensor]:
    """Features [N, D] of all views in which one part is found, and the sprite of each, [N]."""
    names = [f"{sprite.row['file_name']} {sprite.path.stat().st_size}" for sprite in sprites]
    digest = hashlib.sha256("\n".join([CODE, network.name, network.weights, *names]).encode()).hexdigest()[:12]
    kept = cache / f"parts-{digest}.safetensors"
    if not kept.is_file():
        views = [(k, part.crop) for k, sprite in enumerate(tqdm(sprites, desc="views")) for part in views_of(sprite)]
        found = _embed(network, [crop for _, crop in views], "features of views")
        with atomic_path(kept) as partial:
            save_file({"features": found, "sprite": torch.tensor([k for k, _ in views])}, partial)
    loaded = load_file(kept)
    return loaded["features"], loaded["sprite"]


@torch.no_grad()
def _embed(network: FeatureNetwork, crops: Sequence[Pixels], what: str | None = None) -> Tensor:
    batches = range(0, len(crops), BATCH)
    shown = tqdm(batches, desc=what, disable=None if what else True, leave=False)
    stacked = (torch.from_numpy(np.stack(crops[k : k + BATCH])).permute(0, 3, 1, 2) for k in shown)
    return torch.cat([network.embed(batch)["features"].float().cpu() for batch in stacked])
