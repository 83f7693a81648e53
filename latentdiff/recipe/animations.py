"""Write animations with their recipe: WebP, GIF, animated PNG, and MP4 by PyAV."""

from collections.abc import Iterable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentdiff.errors import InputError
from latentdiff.files import atomic_path
from latentdiff.recipe.files import CHUNK, image_metadata
from latentdiff.recipe.schema import Recipe

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".webp": ("WEBP", {"quality": 90, "method": 4}),
    ".gif": ("GIF", {}),
    ".png": ("PNG", {}),
    ".mp4": ("MP4", {}),
}
FASTEST = {"GIF": 50.0, "WEBP": 1000.0, "PNG": 1000.0, "MP4": 240.0}  # frames per second that the format can represent
CONSTANT_QUALITY = "18"  # x264's scale: 0 is lossless, 51 the worst


def check_animation(path: Path, fps: float) -> None:
    """Raise InputError unless the format of the suffix supports animations with this frame rate."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"-o {path} must end in one of {', '.join(FORMATS)}; try {path.stem or 'animation'}.webp")
    kind, _ = FORMATS[path.suffix.lower()]
    if not 0.1 <= fps <= FASTEST[kind]:
        raise InputError(f"--fps {fps:g} must be from 0.1 to {FASTEST[kind]:g} for {path.suffix}; try 12")
    if kind == "MP4" and find_spec("av") is None:
        raise InputError(f'-o {path} requires PyAV; pip install "latentdiff[video]", or write .webp, .gif or .png')


def write_animation(frames: Iterable[Image.Image], recipe: Recipe, path: Path, fps: float) -> None:
    """Save frames of equal size; all formats but MP4 repeat. Raises InputError if the file cannot be written."""
    kind, options = FORMATS[path.suffix.lower()]
    rest = iter(frames)
    first = next(rest)
    try:
        with atomic_path(path) as partial:
            if kind == "MP4":
                _write_mp4(first, rest, recipe, partial, fps)
                return
            metadata = image_metadata(kind, recipe, first.width, first.height)
            times = {"duration": round(1000 / fps), "loop": 0}
            others = rest if kind == "GIF" else list(rest)  # Pillow reads those of other formats twice
            first.save(partial, format=kind, save_all=True, append_images=others, **times, **options, **metadata)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); free space or choose another file") from error


def _write_mp4(first: Image.Image, rest: Iterable[Image.Image], recipe: Recipe, path: Path, fps: float) -> None:
    """Encode H.264 in the pixel format that players support, with the recipe as the comment."""
    import av

    with av.open(str(path), "w") as container:
        container.metadata["comment"] = f"{CHUNK}:{recipe.model_dump_json()}"
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        stream.options = {"crf": CONSTANT_QUALITY}
        for image in (first, *rest):
            frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
