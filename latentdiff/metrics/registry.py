"""Registry of metrics: the data that each needs, how it is computed, and the labels of its values."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latentdiff.metrics.alignment import alignment, precision_at
from latentdiff.metrics.frechet import frechet_distance
from latentdiff.metrics.inception_score import class_score
from latentdiff.metrics.kid import kernel_distance
from latentdiff.metrics.prdc import density_coverage, precision_recall
from latentdiff.metrics.wasserstein import texture_distance

PATCHES = 16  # per picture. Karras et al. use 128 and 512 directions; fewer make intervals affordable
DIRECTIONS = 128
CANDIDATES = 100

Sample = dict[str, Tensor]
"""Tensors of a set with one row per picture: `features`, `logits`, `image`, `text`, `rank`, `patches_<size>`."""


@dataclass(frozen=True)
class Metric:
    """A metric. needs: fields of Sample that it reads. least: number of pictures that each set needs at least.

    compute: values from the generated and the real set.
    """

    needs: tuple[str, ...]
    least: int
    compute: Callable[[Sample, Sample], dict[str, float]]


def _textures(generated: Sample, real: Sample) -> dict[str, float]:
    sizes = sorted(int(key.removeprefix("patches_")) for key in generated if key.startswith("patches_"))
    values = {
        f"sliced_wasserstein_{size}": texture_distance(
            generated[f"patches_{size}"], real[f"patches_{size}"], DIRECTIONS
        )
        for size in sizes
    }
    return {"sliced_wasserstein": sum(values.values()) / len(values), **values}


def _each(generated: Sample, real: Sample, needs: str, value: Callable[[Sample], dict[str, float]]) -> dict[str, float]:
    """Computes a metric of a single set for the generated pictures and, for comparison, for the real ones."""
    theirs = {f"{key}_real": number for key, number in value(real).items()} if needs in real else {}
    return value(generated) | theirs


def _retrieval(sample: Sample) -> dict[str, float]:
    return {f"retrieval_{key}": value for key, value in precision_at(sample["rank"]).items()}


METRICS: dict[str, Metric] = {
    "frechet": Metric(
        ("features",), 4, lambda g, r: {"frechet_distance": frechet_distance(g["features"], r["features"])}
    ),
    "kernel": Metric(("features",), 4, lambda g, r: {"kernel_distance": kernel_distance(g["features"], r["features"])}),
    "precision-recall": Metric(("features",), 8, lambda g, r: precision_recall(g["features"], r["features"])),
    "density-coverage": Metric(("features",), 12, lambda g, r: density_coverage(g["features"], r["features"])),
    "class-score": Metric(
        ("logits",), 4, lambda g, r: _each(g, r, "logits", lambda s: {"class_score": class_score(s["logits"])})
    ),
    "sliced-wasserstein": Metric(("patches",), 2, _textures),
    "alignment": Metric(
        ("image", "text"),
        2,
        lambda g, r: _each(g, r, "text", lambda s: {"alignment": alignment(s["image"], s["text"])}),
    ),
    "retrieval": Metric(("image", "text"), 12, lambda g, r: _each(g, r, "rank", _retrieval)),
}

LABELS = {
    "frechet_distance": "Frechet distance",
    "kernel_distance": "kernel distance",
    "class_score": "class score",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
}


def label(key: str) -> str:
    """The name of a value in tables."""
    stem = key.removesuffix("_real")
    words = LABELS.get(stem, stem.replace("_", " ").replace("retrieval r", "retrieval R@"))
    return f"{words} of the real pictures" if stem != key else words
