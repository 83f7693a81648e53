"""Progress while images are sampled: a bar, and a preview file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent, partial_path
from latentdiff.previews import Previewer
from latentdiff.sampling.loop import StepInfo

LONGEST_SIDE = 512  # pixels of a preview
EVERY = 5  # steps between previews


class Progress:
    """A callback that updates a progress bar after each step, and then calls `then`."""

    def __init__(self, bar: Any, then: Callable[[StepInfo], None] | None = None) -> None:
        self.bar, self.then = bar, then

    def __call__(self, info: StepInfo) -> None:
        self.bar.total = info.steps
        self.bar.update(info.step - self.bar.n)
        if self.then is not None:
            self.then(info)


class PreviewFile:
    """A callback that writes a PNG of the predicted images after every `every` steps and after the last.

    It has the size of the images, or less: writing it takes 9 ms at 512 pixels a side, and 0.8 ms at 128.
    """

    def __init__(self, path: Path, every: int, pipe: Any) -> None:
        self.path, self.every, self.previewer, self.factor = path, every, Previewer(pipe), pipe.vae.config.downscale

    def __call__(self, info: StepInfo) -> None:
        if info.step % self.every and info.step != info.steps:
            return
        images = [self.previewer(x0) for x0 in info.x0]
        sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
        for k, image in enumerate(images):
            sheet.paste(image, (k * images[0].width, 0))
        if (times := min(LONGEST_SIDE // max(sheet.size), self.factor)) > 1:
            sheet = sheet.resize((times * sheet.width, times * sheet.height), Image.Resampling.BILINEAR)
        partial = partial_path(self.path)
        try:
            sheet.save(partial, format="PNG", compress_level=1)
            partial.replace(self.path)  # atomic for readers, without waiting for the disk
        finally:
            partial.unlink(missing_ok=True)


def check_preview(path: Path | None, every: int | None = None) -> None:
    """Raise InputError unless previews can be written to `path`; None means no previews."""
    if path is None and every is not None:
        raise InputError(f"--preview-every {every} requires a file; pass it with --preview")
    if path is not None:
        check_writable_parent(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"--preview {path} must end in .png; try {path.stem}.png")


def preview_file(pipe: Any, path: Path | None, every: int | None = None) -> PreviewFile | None:
    """The callback that writes previews to `path`, if any."""
    return PreviewFile(path, every or EVERY, pipe) if path else None
