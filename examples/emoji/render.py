"""SVG and WebP pictures as square RGB on white."""

import io

import resvg_py
from PIL import Image


def render(data: bytes, size: int) -> Image.Image:
    """One picture, `size` pixels a side, its transparency laid on white."""
    if data.startswith(b"<svg"):
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=size, height=size))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), "white")
    canvas.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas.convert("RGB")
