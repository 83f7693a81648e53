"""Sample images as HTML: one row per prompt, from the first evaluation to the newest."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from latentdiff.files import finished_files
from latentdiff.training.samples import Samples, read_samples

EVALUATIONS = 4  # side by side, so that the page does not scroll horizontally
LARGEST = 640  # stored side in pixels: twice the displayed size, for dense screens
STYLE = """
.row { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)) }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 150px), 1fr)) }
.prompt { margin: 1.2rem 0 .3rem; overflow-wrap: anywhere }
figure { margin: 0 }
figure > img { display: block; width: 100%; height: auto }
figcaption { font-size: .85rem; opacity: .8; overflow-wrap: anywhere }
"""


def sample_table(folder: Path) -> str:
    """The newest samples next to evenly spaced earlier ones; grids without captions are shown uncropped.

    Empty if there are none.
    """
    paths = finished_files(folder, "*.png")
    grids = [(path, read_samples(path)) for path in _spread(paths, EVALUATIONS)]
    if not grids:
        return ""
    captions = grids[-1][1].captions
    if not captions:
        figures = [_figure(samples.grid, _step(path)) for path, samples in reversed(grids)]
        return figures[0] + _row(figures[1:])
    comparable = [(path, samples.images()) for path, samples in grids if samples.captions == captions]
    return "".join(
        f'<p class="prompt">{escape(caption)}</p>{_row([_figure(cells[k], _step(path)) for path, cells in comparable])}'
        for k, caption in enumerate(captions)
    )


def captioned_strip(path: Path) -> str:
    """Small images of one grid with their captions; empty if the file is missing."""
    if not path.is_file():
        return ""
    samples: Samples = read_samples(path)
    figures = [_figure(image, caption) for image, caption in zip(samples.images(), samples.captions, strict=True)]
    return _row(figures, "row small")


def _spread(paths: list[Path], count: int) -> list[Path]:
    """Up to `count` evenly spaced paths, including the first and the last."""
    if len(paths) <= count:
        return paths
    return [paths[round(k * (len(paths) - 1) / (count - 1))] for k in range(count)]


def _step(path: Path) -> str:
    return f"step {int(path.stem)}" if path.stem.isdecimal() else path.stem


def _row(figures: list[str], kind: str = "row") -> str:
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


def _figure(image: Image.Image, caption: str) -> str:
    shown = image.copy()
    shown.thumbnail((LARGEST, LARGEST))
    data = io.BytesIO()
    shown.save(data, "JPEG", quality=92)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
