"""Pictures sooner that are not quite the same: each is off unless it is asked for by its name."""

from collections.abc import Sequence

from latentdiff.denoiser import Network
from latentdiff.errors import InputError, did_you_mean
from latentdiff.models.conditioning import DenoisingNetwork
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.deepcache import EVERY, DeepCacheUNet
from latentdiff.runtime.int8 import quantise

KNOWN = ("reuse", "int8")


def check_approximations(names: Sequence[str]) -> tuple[str, ...]:
    """The names, or the only one, each once, in one order. Raises InputError for one that is unknown."""
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if name not in KNOWN:
            raise InputError(f"approximate={name!r} is unknown; {did_you_mean(name, KNOWN)}")
    return tuple(name for name in KNOWN if name in names)


def approximate(denoiser: DenoisingNetwork, names: Sequence[str]) -> None:
    """Change the layers of a U-Net that `prepare` has seen; `restore` undoes it. Raises InputError where it cannot."""
    if "int8" in names:
        quantise(denoiser)


def for_one_run(denoiser: DenoisingNetwork, names: Sequence[str], every: int = EVERY) -> Network:
    """What the steps of one run are to call; with reuse every `every`-th computes all of it."""
    if "reuse" not in names:
        return denoiser
    assert isinstance(denoiser, UNet2DConditionModel)
    return DeepCacheUNet(denoiser, every)
