"""Reconstruction quality of an autoencoder, and the mean and deviation of its latents."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm import tqdm

from latentdiff.errors import InputError
from latentdiff.metrics.bootstrap import check_resamples, intervals
from latentdiff.metrics.evaluate import SHOWN, Evaluation, finite
from latentdiff.metrics.features import FeatureNetwork
from latentdiff.metrics.frechet import frechet_distance
from latentdiff.metrics.pictures import Pictures
from latentdiff.models.vae import AutoencoderKL

WINDOW, SIGMA = 11, 1.5
LEAST = 4
TOLERATED = 0.05  # relative error of the latents' deviation above which a note is added

Parts = dict[str, Tensor]


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of uint8 pictures [B, 3, H, W], in dB with a peak of 255: [B]."""
    error = (made.double() - real.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp_min(1e-10))


def ssim(made: Tensor, real: Tensor) -> Tensor:
    """Structural similarity of each pair of uint8 pictures [B, 3, H, W], 11 pixels or more a side: [B], at most 1.

    Mean over colours and over the positions where the Gaussian window of 11 pixels fits completely.
    Wang et al. 2004, "Image Quality Assessment", eq. 13, K1 = 0.01, K2 = 0.03. Raises InputError for smaller pictures.
    """
    if min(real.shape[-2:]) < WINDOW:
        raise InputError(f"SSIM needs sides of {WINDOW} pixels or more, not {min(real.shape[-2:])}; use larger ones")
    _, places = structural_similarity_index_measure(
        made.double(), real.double(), sigma=SIGMA, data_range=255.0, reduction="none", return_full_image=True
    )
    border = WINDOW // 2  # where torchmetrics mirrors the picture
    return places[..., border:-border, border:-border].flatten(1).mean(1)


@torch.no_grad()
def reconstruct(
    vae: AutoencoderKL,
    pictures: Pictures,
    name: str,
    network: FeatureNetwork | None = None,
    seed: int = 0,
    resamples: int = 100,
) -> Evaluation:
    """Compare real pictures with their reconstructions: PSNR, SSIM, Frechet distance by `network`, latent statistics.

    latent_mean and latent_std are those of `scaling_factor * z` with z sampled from the posterior; ideally 0 and 1.
    name: the name of the VAE in the result. Raises InputError for fewer than 4 pictures, pictures below 11 pixels, and
    fewer than 2 resamples; NonFiniteError if the VAE's output is NaN or infinite.
    """
    if len(pictures) < LEAST:
        raise InputError(f"{len(pictures)} pictures are too few to evaluate a VAE; use {LEAST} or more")
    check_resamples(resamples)
    parts: list[Parts] = []
    start = 0
    shown: list[tuple[Tensor, Tensor, str, str]] = []
    captions, step = pictures.captions, max(1, len(pictures) // SHOWN)
    with tqdm(total=len(pictures), desc="reconstructed", disable=None) as bar:
        for real in pictures.batches():
            made, part = _reconstruct_batch(vae, real, network)
            places = [k for k in range(len(real)) if (start + k) % step == 0]
            shown += [(made[k], real[k], captions[start + k] if captions else "", "") for k in places]
            parts.append(part)
            start += len(real)
            bar.update(len(real))
    measured = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    values = intervals(lambda rows, _: _values(measured, rows), (len(pictures), 0), resamples, seed)
    scale, std = vae.config.scaling_factor, values["latent_std"].value
    return Evaluation(
        generated={"vae": name, "count": len(pictures), "scaling_factor": scale, **_channels(measured)},
        real=pictures.source,
        resolution=pictures.resolution,
        network={"name": network.name, "weights": network.weights} if network else None,
        judge=None,
        seed=seed,
        resamples=resamples,
        values=values,
        notes=_notes(scale, std),
        shown=shown[:SHOWN],
    )


def _reconstruct_batch(vae: AutoencoderKL, real: Tensor, network: FeatureNetwork | None) -> tuple[Tensor, Parts]:
    """Reconstructions from the posterior's mean, uint8, with the metrics of each picture and moments of its latents."""
    posterior = vae.encode((real / 127.5 - 1).to(next(vae.parameters())))
    mean, variance = posterior.mean.double().cpu(), posterior.logvar.double().exp().cpu()
    decoded = vae.decode(posterior.mean).float().cpu()
    for values, name in ((mean, "means"), (variance, "variances"), (decoded, "reconstructions")):
        finite(values, f"the VAE's {name}")
    made = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    scale = vae.config.scaling_factor
    part = {
        "psnr": psnr(made, real),
        "ssim": ssim(made, real),
        "first": scale * mean.mean((2, 3)),
        "second": scale**2 * (mean.square() + variance).mean((2, 3)),
    }
    if network is not None:
        part |= {key: network.embed(pixels)["features"].cpu() for key, pixels in (("made", made), ("real", real))}
    return made, part


def _values(parts: Parts, rows: Tensor) -> dict[str, float]:
    mean = parts["first"][rows].mean()
    values = {
        "psnr": parts["psnr"][rows].mean(),
        "ssim": parts["ssim"][rows].mean(),
        "latent_mean": mean,
        "latent_std": (parts["second"][rows].mean() - mean**2).sqrt(),
    }
    found = {key: value.item() for key, value in values.items()}
    if "made" in parts:
        found["frechet_distance"] = frechet_distance(parts["made"][rows], parts["real"][rows])
    return found


def _channels(parts: Parts) -> dict[str, Any]:
    mean = parts["first"].mean(0)
    std = (parts["second"].mean(0) - mean**2).sqrt()
    return {f"channel_{key}": [round(v, 3) for v in value.tolist()] for key, value in (("mean", mean), ("std", std))}


def _notes(scale: float, std: float) -> list[str]:
    if abs(std - 1) <= TOLERATED:
        return []
    better = scale / std
    return [f"scaling_factor {scale}: the latents have a standard deviation of {std:.3f}, not 1; use {better:.5f}"]
