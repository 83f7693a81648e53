"""`latentdiff grid`: one labelled sheet of a prompt with varied settings, or of the images of a folder."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import latentdiff
from latentdiff.cli.finished_images import cached_path, check_cache, is_cached
from latentdiff.cli.open_pipeline import DEFAULT_OPTIONS, open_pipeline
from latentdiff.cli.settings import DEFAULTS, call_arguments, sampled_size, with_model_defaults
from latentdiff.errors import InputError, did_you_mean
from latentdiff.files import atomic_path, check_writable_parent
from latentdiff.images.decoding import FORMATS, decode
from latentdiff.images.reading import read_images
from latentdiff.images.sheet import contact_sheet, labelled_grid
from latentdiff.recipe import Recipe, write_image

AXES: dict[str, Callable[[str], Any]] = {
    "prompt": str, "negative_prompt": str, "sampler": str, "spacing": str, "steps": int, "seed": int, "height": int,
    "width": int, "guidance_scale": float, "eta": float,
}  # fmt: skip
MOST_CELLS = 400
SUFFIXES = tuple(f".{name.lower()}" for name in (*FORMATS, "jpg", "tif"))


@dataclass(frozen=True)
class Axis:
    """A setting and its values along one side of the grid."""

    name: str
    values: list[Any]

    @property
    def labels(self) -> list[str]:
        return [f"{self.name}={value}" if self.name != "prompt" else str(value) for value in self.values]


def parse_axis(text: str, option: str) -> Axis:
    """Parse `steps=5,10,20`. Raises InputError for unknown settings and for values of the wrong type."""
    name, equals, values = text.partition("=")
    key = name.strip().replace("-", "_")
    if key not in AXES:
        raise InputError(f"{option} {text}: {key!r} cannot be varied in a grid; {did_you_mean(key, AXES)}")
    words = [word.strip() for word in values.split(",") if word.strip()]
    if not equals or not words:
        raise InputError(f"{option} {text}: write a setting and its values, for example steps=5,10,20")
    return Axis(key, [_value(key, word, f"{option} {text}") for word in words])


def _value(key: str, word: str, place: str) -> Any:
    kind = AXES[key]
    try:
        return kind(word)
    except ValueError as error:
        rule = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{place}: {word!r}: the values of {key} are {rule}; write for example {key}=1,2,3") from error


def run(prompt: str, output: Path, x: str, y: str | None, device: str, given: dict[str, Any]) -> None:
    """Generate the missing cells, and write the sheet. Raises InputError."""
    across, down = parse_axis(x, "--x"), None if y is None else parse_axis(y, "--y")
    if down is not None and down.name == across.name:
        raise InputError(f"--x and --y are both {down.name}; choose two settings")
    count = len(across.values) * (1 if down is None else len(down.values))
    if count > MOST_CELLS:
        raise InputError(f"the grid has {count} cells, more than {MOST_CELLS}; use fewer values")
    check_writable_parent(output)
    _check_png(output)
    check_cache(output, "cells")
    settings = DEFAULTS | DEFAULT_OPTIONS | {"prompt": prompt, "seed": 0} | given
    opened = open_pipeline(device, settings)
    settings = with_model_defaults(settings, opened.pipe)
    cells = [
        [settings | ({} if down is None else {down.name: value}) | {across.name: other} for other in across.values]
        for value in ([None] if down is None else down.values)
    ]
    for cell in (cell for row in cells for cell in row):
        _check(opened.pipe, cell, across, down)
    with tqdm(desc="cells", total=count, disable=None, file=sys.stderr) as bar:
        rows = [[_draw(opened, cell, output, bar) for cell in row] for row in cells]
    sheet = labelled_grid(rows, across.labels, [] if down is None else down.labels, prompt)
    _save(sheet, output)


def _check(pipe: Any, settings: dict[str, Any], across: Axis, down: Axis | None) -> None:
    """Raise InputError for a cell that the pipeline would refuse."""
    from latentdiff.inputs import read_inputs

    try:
        read_inputs(pipe.limits, **call_arguments(settings))
    except InputError as error:
        named = [axis.name for axis in (across, down) if axis is not None]
        raise InputError(f"the cell {', '.join(f'{name}={settings[name]}' for name in named)}: {error}") from error


def _draw(opened: Any, settings: dict[str, Any], output: Path, bar: Any) -> Image.Image:
    """Generate the image of a cell, or read it from its file if that has the same recipe."""
    size = sampled_size(settings, opened.pipe)
    recipe = Recipe.model_validate({**opened.same, **settings, **size, "version": latentdiff.__version__})
    path = cached_path(output, "cells", recipe)
    if is_cached(path, recipe):
        bar.update()
        return read_images(path)[0]
    image: Image.Image = opened.pipe(**call_arguments(settings)).images[0]
    path.parent.mkdir(exist_ok=True)
    write_image(image, recipe, path)
    bar.update()
    return image


def contact(folder: Path, output: Path, columns: int = 6, side: int = 160) -> None:
    """Write a contact sheet of a folder's images. Raises InputError."""
    check_writable_parent(output)
    _check_png(output)
    if not folder.is_dir():
        raise InputError(f"--folder {folder} is not a folder; pass a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path != output)
    if not paths:
        raise InputError(f"--folder {folder} contains no images; pass a folder with {', '.join(SUFFIXES)} files")
    images = []
    for path in paths:
        image = decode(path.read_bytes(), str(path))  # of animations the first frame
        image.thumbnail((side, side))
        images.append(image)
    _save(contact_sheet(images, [path.name for path in paths], columns, side), output)


def _check_png(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise InputError(f"-o {output} must end in .png; try {output.stem}.png")


def _save(sheet: Image.Image, output: Path) -> None:
    with atomic_path(output) as partial:
        sheet.save(partial, format="PNG")
    print(output)
