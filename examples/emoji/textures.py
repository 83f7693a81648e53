"""Texture features, which identify drawing styles: means and standard deviations of a network's early feature maps.

Pooled last features mostly describe the concept: a linear probe on them recognises the style of 70 % of held-out
training pictures, and on texture features that of 84 % (1,079 and 540 pictures of food and animals).

Texture features are sensitive to nearly invisible changes: noise of up to 3 of 255 levels reduced the accuracy on 45
real pictures from 0.96 to 0.78. A probe that is also trained on modified pictures has 0.96 on modified and on
unmodified ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff.metrics.features import FeatureNetwork, open_efficientnet
from latentdiff.runtime.device import pick_device

BLOCKS = (0, 2, 4, 7, 10, 14)
BLUR = torch.tensor([1.0, 4.0, 1.0]) / 6
Change = Callable[[Tensor, torch.Generator], Tensor]


def noisy(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [B, 3, R, R] with noise of a standard deviation of up to 3 of 255 levels."""
    return _to_bytes(pixels + 3 * _strength(pixels, generator) * torch.randn(pixels.shape, generator=generator))


def tinted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [B, 3, R, R] with smooth spots of 8 pixels and a standard deviation of up to 4 levels."""
    batch, channels, *size = pixels.shape
    spots = torch.randn(batch, channels, *(side // 8 for side in size), generator=generator)
    return _to_bytes(pixels + 4 * _strength(pixels, generator) * F.interpolate(spots, size, mode="bicubic"))


def blurred(pixels: Tensor, _: torch.Generator) -> Tensor:
    """uint8 [B, 3, R, R] blurred by 0.6 pixels."""
    kernel = torch.outer(BLUR, BLUR).expand(pixels.shape[1], 1, 3, 3)
    return _to_bytes(F.conv2d(F.pad(pixels.float(), (1, 1, 1, 1), "replicate"), kernel, groups=pixels.shape[1]))


HARDLY_SEEN: tuple[Change, ...] = (noisy, tinted, blurred)


def _strength(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(pixels), 1, 1, 1, generator=generator)


def _to_bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).round().to(torch.uint8)


def texture_network(device: str = "auto") -> FeatureNetwork:
    """They are those of the maps after some blocks of EfficientNet-Lite0, and after its first layer, at the size of the
    pictures.

    Mean and deviation of each map are what Huang & Belongie 2017 ("Arbitrary Style Transfer", eq. 8) call its style.
    """
    chosen = pick_device(device)
    model, file = open_efficientnet(chosen)
    seen: list[Tensor] = []
    for part in (model._bn0, *(model._blocks[k] for k in BLOCKS)):
        part.register_forward_hook(lambda _, __, maps: seen.append(maps))

    def embed(pixels: Tensor) -> dict[str, Tensor]:
        seen.clear()
        model.extract_features((pixels.to(chosen).float() - 127) / 128)
        moments = [torch.std_mean(maps.flatten(2), 2) for maps in seen]
        return {"features": torch.cat([value for pair in moments for value in pair], 1)}

    return FeatureNetwork("efficientnet-lite0 maps", file, False, embed)
