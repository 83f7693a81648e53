"""Render SVG and WebP pictures as square images, transparent or on white."""

import io

import resvg_py
from PIL import Image


def render_transparent(data: bytes, size: int) -> Image.Image:
    """One picture as RGBA, `size` pixels a side."""
    if data.startswith(b"<svg"):
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=size, height=size))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    canvas.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA picture as RGB, blended with white."""
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return canvas.convert("RGB")


def render(data: bytes, size: int) -> Image.Image:
    """One picture as RGB on white, `size` pixels a side."""
    return on_white(render_transparent(data, size))
