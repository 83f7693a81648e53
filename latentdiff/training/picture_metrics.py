"""Image metrics during training, with the same captions and seeds at each evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentdiff.config.data import DataConfig
from latentdiff.config.train import MetricsConfig
from latentdiff.data.dataset import load_pixels
from latentdiff.data.layouts import DataRow
from latentdiff.errors import InputError
from latentdiff.metrics.clip import open_clip
from latentdiff.metrics.evaluate import LACKS, check_counts, check_judge, choose_metrics, kinds, scan
from latentdiff.metrics.features import feature_network
from latentdiff.metrics.pictures import AT_ONCE
from latentdiff.metrics.registry import METRICS, Sample
from latentdiff.training.processes import process_state

Draw = Callable[[list[str], list[int]], Tensor]


@dataclass(frozen=True)
class _Held:
    """A set of pictures in memory: uint8 [N, 3, R, R]."""

    pixels: Tensor
    captions: list[str]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        return self.pixels.shape[-1]

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self) -> Iterator[Tensor]:
        yield from self.pixels.split(AT_ONCE)


class PictureMetrics:
    """`config.num` evenly spaced held-out rows, and the networks that the metrics use.

    Raises InputError for too few rows, and for a metric, network, package or judge that is not available.
    """

    def __init__(self, config: MetricsConfig, data: DataConfig, held_out: Sequence[DataRow]) -> None:
        self.data = data
        chosen = choose_metrics(config.names, set(LACKS))
        check_judge(chosen, config.judge)
        needs = {need for name in chosen for need in METRICS[name].needs}
        if len(held_out) < config.num:
            raise InputError(f"metrics.num={config.num} is more than the {len(held_out)} held-out pictures; lower it")
        self.rows = [held_out[k * len(held_out) // config.num] for k in range(config.num)]
        self.captions = [row.captions[0] for row in self.rows]
        self.device = process_state().device
        features = needs & {"features", "logits"}
        self.network = feature_network(config.features, config.weights, str(self.device)) if features else None
        self.judge = open_clip(config.judge, self.device) if config.judge else None
        self.names = choose_metrics(config.names, kinds(self.network, self.judge, self.captions, data.resolution))
        check_counts(self.names, config.num, config.num)
        self.real: Sample | None = None

    def compute(self, draw: Draw) -> dict[str, float]:
        """All metrics. `draw(captions, seeds)` generates pictures [N, 3, R, R] in [0, 1]; seeds start at 0."""
        groups = torch.arange(len(self.rows)).split(AT_ONCE)
        drawn = torch.cat([draw([self.captions[k] for k in part], part.tolist()).cpu() for part in groups])
        if self.real is None:
            size, background = self.data.resolution, self.data.background
            self.real = self._scan(torch.stack([load_pixels(row, size, background) / 2 + 0.5 for row in self.rows]))
        generated = self._scan(drawn)
        values = [METRICS[name].compute(generated, self.real) for name in self.names]
        return {key: value for each in values for key, value in each.items()}

    def _scan(self, pixels: Tensor) -> Sample:
        """Outside autocast, so that the features equal those of `latentdiff evaluate`."""
        held = _Held((pixels * 255).round().to(torch.uint8), self.captions)
        with torch.autocast(self.device.type, enabled=False):
            return scan(held, "metrics", self.names, self.network, self.judge).sample
