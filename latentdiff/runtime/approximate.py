"""Approximations that trade accuracy for speed; each is off unless it is requested by name."""

from collections.abc import Sequence

from latentdiff.denoiser import Network
from latentdiff.errors import InputError, did_you_mean
from latentdiff.models.conditioning import DenoisingNetwork
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.deepcache import EVERY, DeepCacheUNet
from latentdiff.runtime.int8 import quantise

KNOWN = ("reuse", "int8")


def check_approximations(names: Sequence[str]) -> tuple[str, ...]:
    """The names without duplicates in a fixed order; a string is one name. Raises InputError for unknown names."""
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if name not in KNOWN:
            raise InputError(f"approximate={name!r} is unknown; {did_you_mean(name, KNOWN)}")
    return tuple(name for name in KNOWN if name in names)


def approximate(denoiser: DenoisingNetwork, names: Sequence[str]) -> None:
    """Replace layers of a prepared U-Net; `restore` undoes it. Raises InputError if this machine does not support an
    approximation.
    """
    if "int8" in names:
        quantise(denoiser)


def for_one_run(denoiser: DenoisingNetwork, names: Sequence[str], every: int = EVERY) -> Network:
    """The network for the steps of one sampling run; with "reuse", every `every`-th step computes all levels."""
    if "reuse" not in names:
        return denoiser
    assert isinstance(denoiser, UNet2DConditionModel)
    return DeepCacheUNet(denoiser, every)
