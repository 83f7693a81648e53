"""Error of the fast layers against float32, compared with plain bfloat16: `python -m benchmarks.numerics`."""

import argparse
import gc
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.machine import device_option
from benchmarks.report import table, write
from latentdiff.checkpoints.folder import load_weights
from latentdiff.checkpoints.locate_model import locate
from latentdiff.config.generation import GenerationConfig
from latentdiff.errors import InputError
from latentdiff.metrics.clip import open_clip
from latentdiff.metrics.evaluate import evaluate
from latentdiff.metrics.features import feature_network
from latentdiff.metrics.pictures import FolderPictures, ModelPictures, choose_rows
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.runtime.compiled import compile_model
from latentdiff.runtime.optimize import prepare, restore

STEPS = 10
PLAIN = ("off", "bfloat16")
SETTINGS = [("off", "float32"), PLAIN, ("auto", "bfloat16")]


def model_of(shape: str, network: networks.UNet) -> nn.Module:
    """A float32 network with the weights of the bundled model, or with random weights of another shape."""
    torch.manual_seed(0)
    model = network.network().requires_grad_(False).eval()
    if shape == "emoji":
        load_weights(model, locate(None) / "unet")
    return model.to(network.device)


@torch.no_grad()
def outputs(model: nn.Module, network: networks.UNet, compiled: bool) -> Iterator[tuple[str, Tensor]]:
    """The output in float32, then in bfloat16 at each level of `optimize`; the model is converted in place."""

    def call(dtype: torch.dtype) -> Tensor:
        inputs = (x.to(network.device, dtype if x.is_floating_point() else x.dtype) for x in network.inputs())
        return network.ours(model)(*inputs).float().cpu()

    yield "float32", call(torch.float32)
    model.to(torch.bfloat16)
    yield "off", call(torch.bfloat16)
    prepare(model)
    yield "auto", call(torch.bfloat16)
    if compiled:
        restore(model)
        compile_model(model, _refuse)
        yield "compile", call(torch.bfloat16)


def _refuse(_: nn.Module) -> None:
    raise RuntimeError("torch.compile failed; see the reason above")


def errors(found: Iterator[tuple[str, Tensor]]) -> dict[str, float]:
    """||y - y32|| / ||y32|| of each output after the first, float32's y32; L2 norms."""
    exact = next(found)[1].double()
    return {name: float((out.double() - exact).norm() / exact.norm()) for name, out in found}


def networks_table(shapes: list[str], latents: int | None, device: str, compiled: bool) -> str:
    names = ["auto", "compile"] if compiled else ["auto"]
    header = ["", "latents", "off", *(cell for name in names for cell in (name, f"{name} of off"))]
    rows = []
    for shape in shapes:
        network = networks.unet(shape, latents, device=device)
        of = errors(outputs(model_of(shape, network), network, compiled))
        gc.collect()  # free the memory of this model for the next one
        ratios = (cell for name in names for cell in (f"{of[name]:.5f}", f"{of[name] / of['off']:.2f}"))
        rows.append([shape, str(network.latents), f"{of['off']:.5f}", *ratios])
    return table(header, rows)


def pictures_table(real: Path, judge: str | None, num: int, device: str) -> str:
    """Compare pictures of the bundled model, with the same captions and seeds in each setting, with real ones."""
    rows = choose_rows(real, num, seed=0)
    network = feature_network(device=device)
    clip = open_clip(judge, torch.device(device)) if judge else None
    metrics = {"frechet_distance": "frechet"} | ({"alignment": "alignment"} if clip else {})
    found: dict[tuple[str, str], list[float]] = {}
    for optimize, dtype in SETTINGS:
        pipe = LatentDiffusionPipeline.from_pretrained(None, device, dtype, optimize)
        pictures = FolderPictures(real, rows, pipe.default_size)
        made = ModelPictures(pipe, pictures.captions or [], GenerationConfig(num_inference_steps=STEPS), seed=0)
        values = evaluate(made, pictures, network, clip, list(metrics.values()), resamples=2).values
        found[optimize, dtype] = [values[key].value for key in metrics]
    header = ["", *(cell for key in metrics for cell in (key.replace("_", " "), "change"))]
    return table(header, [_row(*key, values, found[PLAIN]) for key, values in found.items()])


def _row(optimize: str, dtype: str, values: list[float], plain: list[float]) -> list[str]:
    cells = (cell for v, p in zip(values, plain, strict=True) for cell in (f"{v:.4f}", f"{100 * (v / p - 1):+.2f} %"))
    return [f"{optimize} {dtype}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="*", default=["emoji", "sd15"], choices=networks.SHAPES)
    parser.add_argument("--latents", type=int, help="height and width; by default those that the shape was trained at")
    parser.add_argument("--compiled", action="store_true", help='also optimize="compile", which takes minutes')
    parser.add_argument("--real", type=Path, help="captioned pictures to compare the bundled model's with")
    parser.add_argument("--judge", help="CLIP model or text_encoder run that scores how well pictures match captions")
    parser.add_argument("--num", type=int, default=64, help="number of pictures")
    parser.add_argument("--device", default="auto", type=device_option)
    given = parser.parse_args()
    parts, about = [], []
    try:
        if given.shape:
            parts.append(networks_table(given.shape, given.latents, given.device, given.compiled))
            about.append(
                "One U-Net call in bfloat16, batch 2: relative L2 error against float32 on the same weights (the "
                "bundled ones for emoji, else random), as each level of `optimize` computes it."
            )
        if given.real:
            parts.append(pictures_table(given.real, given.judge, given.num, given.device))
            about.append(
                f"{given.num} pictures of the bundled model, same captions and seeds, {STEPS} steps, against as many "
                f"of {given.real.name}; change: against {' '.join(PLAIN)}."
            )
    except InputError as error:
        parser.error(str(error))
    what = "_".join(["numerics", *given.shape, *(["pictures"] if given.real else [])])
    write(what, "\n".join(about), "\n\n".join(parts), torch.device(given.device))


if __name__ == "__main__":
    main()
