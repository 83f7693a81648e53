"""Compare generated with real pictures: one pass over each set, then all metrics with confidence intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import latentdiff
from latentdiff.errors import InputError, NonFiniteError, did_you_mean
from latentdiff.metrics.alignment import caption_ranks
from latentdiff.metrics.bootstrap import METHOD, Interval, check_resamples, intervals
from latentdiff.metrics.clip import Clip
from latentdiff.metrics.features import FeatureNetwork
from latentdiff.metrics.pictures import Pictures
from latentdiff.metrics.registry import CANDIDATES, METRICS, PATCHES, Sample, label
from latentdiff.metrics.wasserstein import SMALLEST, draw_patches

SHOWN = 24


@dataclass(frozen=True)
class Evaluation:
    """The values, the settings that they depend on, and some of the pictures.

    shown: (generated, real) uint8 [3, R, R] and the two captions, evenly spaced over the sets.
    """

    generated: dict[str, Any]
    real: dict[str, Any]
    resolution: int
    network: dict[str, Any] | None
    judge: str | None
    seed: int
    resamples: int
    values: dict[str, Interval]
    notes: list[str]
    shown: list[tuple[Tensor, Tensor, str, str]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        values = {key: {"label": label(key), **asdict(value)} for key, value in self.values.items()}
        return {
            "version": latentdiff.__version__,
            "generated": self.generated,
            "real": self.real,
            "resolution": self.resolution,
            "features": self.network,
            "judge": self.judge,
            "seed": self.seed,
            "interval": {"level": 0.95, "resamples": self.resamples, "method": METHOD},
            "values": values,
            "notes": self.notes,
        }


@dataclass(frozen=True)
class SetScan:
    """The result of one pass over a set: a Sample, and the pictures to show by index."""

    sample: Sample
    shown: dict[int, Tensor]


def evaluate(
    generated: Pictures,
    real: Pictures,
    network: FeatureNetwork | None = None,
    judge: Clip | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 100,
) -> Evaluation:
    """Compute `metrics` (all available ones if None) between two sets of pictures of one size.

    network: whose features are compared. judge: the CLIP pair for alignment and retrieval.
    seed: of patches, halves and candidates; one seed, one result. resamples: the number of resamples for each interval.
    Raises InputError before any picture is read, NonFiniteError for features that are NaN or infinite.
    """
    names = choose_metrics(metrics, kinds(network, judge, generated.captions, generated.resolution))
    check_counts(names, len(generated), len(real))
    check_resamples(resamples)
    scans = [
        scan(pictures, what, names, network, judge, seed)
        for pictures, what in ((generated, "generated"), (real, "real"))
    ]
    first, second = scans[0].sample, scans[1].sample
    values: dict[str, Interval] = {}
    for name in tqdm(names, desc="metrics", disable=None):

        def statistic(rows: Tensor, others: Tensor, name: str = name) -> dict[str, float]:
            return METRICS[name].compute(_take(first, rows), _take(second, others))

        values |= intervals(statistic, (len(generated), len(real)), resamples, seed)
    dimensions = first["features"].shape[1] if "features" in first else None
    return Evaluation(
        generated=generated.source,
        real=real.source,
        resolution=generated.resolution,
        network={"name": network.name, "weights": network.weights, "dimensions": dimensions} if network else None,
        judge=None if judge is None else judge.weights,
        seed=seed,
        resamples=resamples,
        values=values,
        notes=_notes(min(len(generated), len(real)), dimensions),
        shown=_side_by_side(scans, generated.captions, real.captions),
    )


LACKS = {
    "features": "a feature network; pass --features",
    "logits": "a network that names classes; use efficientnet-lite0",
    "image": "a judge; pass a CLIP model",
    "text": "captions of the generated pictures; add a .txt file for each",
    "patches": f"pictures of {SMALLEST} pixels or more; use larger ones",
}


def kinds(network: FeatureNetwork | None, judge: Clip | None, captions: list[str] | None, resolution: int) -> set[str]:
    """The fields of a Sample that are available."""
    kinds = {"patches"} if resolution >= SMALLEST else set()
    if network:
        kinds |= {"features", "logits"} if network.classes else {"features"}
    if judge:
        kinds |= {"image", "text"} if captions else {"image"}
    return kinds


def choose_metrics(requested: Sequence[str] | None, kinds: set[str]) -> list[str]:
    """The metrics to compute. Raises InputError for an unknown name, and for one that needs more than `kinds`."""
    if requested is None:
        return [name for name, metric in METRICS.items() if kinds >= set(metric.needs)]
    for name in requested:
        if name not in METRICS:
            raise InputError(f"metric {name!r} is unknown; {did_you_mean(name, METRICS)}")
        for need in METRICS[name].needs:
            if need not in kinds:
                raise InputError(f"metric {name!r} needs {LACKS[need]}, or omit the metric")
    return list(dict.fromkeys(requested))


def check_judge(names: Iterable[str], judge: str | None) -> None:
    """Raise InputError for a judge that none of the metrics uses."""
    if judge is not None and not any("image" in METRICS[name].needs for name in names):
        raise InputError(f"judge={judge!r} is used by none of the metrics; add alignment or retrieval, or omit it")


def check_counts(names: Iterable[str], generated: int, real: int) -> None:
    """Raise InputError if a metric needs more pictures."""
    for name in names:
        least = METRICS[name].least
        if min(generated, real) < least:
            raise InputError(
                f"{name} needs {least} pictures of each kind; there are {generated} generated and {real} real ones; "
                "add pictures, or omit the metric"
            )


@torch.no_grad()
def scan(
    pictures: Pictures, what: str, metrics: list[str], network: FeatureNetwork | None, judge: Clip | None, seed: int = 0
) -> SetScan:
    """Compute everything that `metrics` need of one set. what: its name in messages. Raises NonFiniteError."""
    needs = {need for name in metrics for need in METRICS[name].needs}
    generator = torch.Generator().manual_seed(seed)
    captions, count = pictures.captions, len(pictures)
    places = set(range(0, count, max(1, count // SHOWN)))
    parts: list[Sample] = []
    shown: dict[int, Tensor] = {}
    start = 0
    with tqdm(total=count, desc=what, disable=None) as bar:
        for pixels in pictures.batches():
            part: Sample = {}
            if network and needs & {"features", "logits"}:
                part |= network.embed(pixels)
            if judge and captions and "text" in needs:
                part["image"] = judge.embed_images(pixels)
                part["text"] = judge.embed_text(captions[start : start + len(pixels)])
            if "patches" in needs:
                part |= _patches(pixels, generator)
            parts.append({key: finite(value.cpu().float(), f"{what}: {key}") for key, value in part.items()})
            shown |= {start + k: pixels[k] for k in range(len(pixels)) if start + k in places}
            start += len(pixels)
            bar.update(len(pixels))
    sample = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if "text" in sample:
        sample["rank"] = caption_ranks(sample["image"], sample["text"], CANDIDATES, seed)
    return SetScan(sample, shown)


def _patches(pixels: Tensor, generator: torch.Generator) -> Sample:
    return {f"patches_{size}": drawn for size, drawn in draw_patches(pixels, PATCHES, generator).items()}


def finite(values: Tensor, name: str) -> Tensor:
    """`values` unchanged. Raises NonFiniteError naming them if any is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise NonFiniteError(f"{name} are not finite; use another network or other weights")
    return values


def _take(sample: Sample, rows: Tensor) -> Sample:
    return {key: value[rows] for key, value in sample.items()}


def _notes(count: int, dimensions: int | None) -> list[str]:
    if dimensions is None or count > dimensions:
        return []
    return [
        f"{count} pictures are fewer than the {dimensions} features, which biases the Frechet distance upwards: "
        "compare it only at equal numbers of pictures"
    ]


def _side_by_side(
    scans: list[SetScan], captions: list[str] | None, others: list[str] | None
) -> list[tuple[Tensor, Tensor, str, str]]:
    pairs = zip(scans[0].shown.items(), scans[1].shown.items(), strict=False)
    return [
        (ours, theirs, captions[k] if captions else "", others[j] if others else "") for (k, ours), (j, theirs) in pairs
    ][:SHOWN]
