"""Upscale images with ESRGAN networks or with Lanczos resampling."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from latentdiff.checkpoints.tensor_files import open_tensor_file
from latentdiff.errors import CheckpointError
from latentdiff.images.reading import to_tensor
from latentdiff.models.esrgan import RRDBNet
from latentdiff.models.tiled_vae import cuts

TILE, OVERLAP = 256, 32  # input pixels along each side
OLD_NAMES = {  # of tensor names in the original ESRGAN files
    r"model\.0\.(.*)": r"conv_first.\1",
    r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(.*)": r"body.\1.rdb\2.conv\3.\4",
    r"model\.1\.sub\.\d+\.(weight|bias)": r"conv_body.\1",
    r"model\.3\.(.*)": r"conv_up1.\1",
    r"model\.6\.(.*)": r"conv_up2.\1",
    r"model\.8\.(.*)": r"conv_hr.\1",
    r"model\.10\.(.*)": r"conv_last.\1",
    r"RRDB_trunk\.(\d+)\.RDB(\d)\.(.*)": r"body.\1.rdb\2.\3",
    r"trunk_conv\.(.*)": r"conv_body.\1",
    r"upconv(\d)\.(.*)": r"conv_up\1.\2",
    r"HRconv\.(.*)": r"conv_hr.\1",
}
PREFIXES = ("params_ema.", "params.", "module.")


def load_upscaler(file: Path, device: torch.device, allow_pickle: bool = False) -> RRDBNet:
    """Load an ESRGAN or Real-ESRGAN file with a scale of 2 or 4. Raises CheckpointError."""
    opened = open_tensor_file(file, allow_pickle)
    names = {_our_name(name): name for name in opened.shapes if name.startswith(_prefix(opened.shapes))}
    shapes = {ours: opened.shapes[theirs] for ours, theirs in names.items()}
    try:
        features, channels = shapes["conv_first.weight"][:2]
        growth = shapes["body.0.rdb1.conv1.weight"][0]
        blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("body."))
        network = RRDBNet(features, growth, blocks, unshuffle={3: 1, 12: 2}[channels])
        network.load_state_dict({ours: opened.get(theirs).float() for ours, theirs in names.items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{file} is not an ESRGAN file of scale 2 or 4; other upscalers are not supported, use --upscaler lanczos"
        ) from error
    return network.to(device).eval()


def _prefix(names: Mapping[str, object]) -> str:
    """The prefix of the weights to read: the averaged ones, if a file has both."""
    return next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)), "")


def _our_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for pattern, ours in OLD_NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return name


@torch.no_grad()
def upscale(image: Image.Image, size: tuple[int, int], network: RRDBNet | None = None) -> Image.Image:
    """Resize to `size` (width, height): first with the network, tile by tile, if there is one, then with Lanczos."""
    if network is not None:
        image = _through(network, image)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _through(network: RRDBNet, image: Image.Image) -> Image.Image:
    scale, device = network.scale, network.conv_first.weight.device
    pixels = to_tensor(image)[None]
    rows, columns = (cuts(length, TILE, OVERLAP, scale) for length in pixels.shape[-2:])
    made = torch.zeros(3, scale * image.height, scale * image.width)
    for row in rows:
        for column in columns:
            tile: Tensor = network(pixels[..., row.latents, column.latents].to(device))[0].cpu()
            weights = row.weights[:, None] * column.weights
            made[:, row.kept, column.kept] += tile[:, row.inner, column.inner] * weights
    array = made.clamp_(0, 1).mul_(255).round_().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)
