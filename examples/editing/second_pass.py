"""How a second pass changes enlarged emoji: `python -m examples.editing.second_pass`.

The emoji are drawn at twice the model's size (Noto's SVG files, from npm), reduced to the model's size, enlarged, and
compared with the drawings.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import table
from examples.emoji.render import render
from examples.emoji.sources import SOURCES, fetch, pictures
from latentdiff import LatentDiffusionPipeline

PROMPTS = {
    "1f34e": "a red apple", "1f431": "a cat face", "1f355": "a pizza", "1f680": "a rocket", "1f98a": "a fox",
}  # fmt: skip
STYLE = "noto"


def psnr(image: Image.Image, original: Image.Image) -> float:
    """In dB, of 8-bit pixels."""
    error = np.asarray(image, dtype=np.float64) - np.asarray(original, dtype=np.float64)
    return 10 * math.log10(255**2 / np.square(error).mean())


def drawn(cache: Path, size: int) -> dict[str, Image.Image]:
    """The originals by prompt."""
    source = next(source for source in SOURCES if source.style == STYLE)
    files = pictures({source: fetch(source.package, cache)})[source]
    return {f"{prompt}, {STYLE} style": render(files[code], size) for code, prompt in PROMPTS.items()}


def compare(
    pipe: LatentDiffusionPipeline, originals: dict[str, Image.Image], strengths: list[float], tile: int
) -> list[list[str]]:
    """The mean PSNR of enlarged images relative to their originals, evaluated as a whole and in tiles."""
    side = (pipe.default_size, pipe.default_size)
    lanczos = Image.Resampling.LANCZOS
    enlarged = {prompt: image.resize(side, lanczos).resize(image.size, lanczos) for prompt, image in originals.items()}

    def mean(strength: float, tile: int | None) -> str:
        images = {
            prompt: pipe(prompt, image=image, strength=strength, seed=7, tile=tile).images[0]
            for prompt, image in enlarged.items()
        }
        return f"{sum(psnr(images[prompt], originals[prompt]) for prompt in originals) / len(originals):.1f}"

    alone = sum(psnr(enlarged[prompt], originals[prompt]) for prompt in originals) / len(originals)
    rows = [["Lanczos alone", f"{alone:.1f}", ""]]
    for strength in strengths:
        rows.append([f"strength {strength:g}", mean(strength, None), mean(strength, tile)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("emoji-packages"), help="where the npm tarball is kept")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4, 0.6])
    parser.add_argument("--tile", type=int, default=128)
    given = parser.parse_args()
    pipe = LatentDiffusionPipeline.from_pretrained(device="cpu")
    originals = drawn(given.cache, 2 * pipe.default_size)
    rows = compare(pipe, originals, given.strengths, given.tile)
    print(table(["second pass", "dB from the originals", f"in tiles of {given.tile} pixels"], rows))


if __name__ == "__main__":
    main()
