"""Losses of the VAE and the text encoder: image gradients, patch discriminator, contrastive loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 1e-3  # an eighth of the difference between two of 256 levels


def gradient_loss(x: Tensor, y: Tensor, exponent: float = 1.0) -> Tensor:
    """Mean of |gradient of x - gradient of y| ** exponent at full and half size (Mathieu et al. 2016, eq. 6).

    x, y: [B, C, H, W]. An exponent of about 0.5 models the sparse gradients of natural images (Krishnan & Fergus 2009,
    sec. 1) and penalises ripples in uniform areas. Below SMALL the loss is smoothed, so that its gradient is finite.
    """
    total = x.new_zeros(())
    for scale in (1, 2):
        d = F.avg_pool2d(x - y, scale)
        for step in (d.diff(dim=-1), d.diff(dim=-2)):
            total = total + ((step.abs() + SMALL) ** exponent - SMALL**exponent).mean()
    return total


def contrastive_loss(text: Tensor, image: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch's similarities (Radford et al. 2021, fig. 3). text, image: [B, D]."""
    logits = logit_scale.exp() * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017) over patch scores of any shape."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class PatchDiscriminator(nn.Sequential):
    """Strided convolutions that score overlapping patches (Isola et al. 2017). [B, 3, H, W] -> [B, 1, H/8, W/8]."""

    def __init__(self, channels: int = 32, layers: int = 3) -> None:
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers):
            width = channels * 2**i
            blocks += [nn.Conv2d(width // 2, width, 4, 2, 1), nn.GroupNorm(8, width), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Conv2d(channels * 2 ** (layers - 1), 1, 3, padding=1))
