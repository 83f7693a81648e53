"""SVG and WebP pictures as square RGB on white."""

import io

import resvg_py
from PIL import Image, ImageDraw


def render(data: bytes, size: int) -> Image.Image:
    """One picture, `size` pixels a side, its transparency laid on white."""
    if data.startswith(b"<svg"):
        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=size, height=size))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), "white")
    canvas.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas.convert("RGB")


def contact_sheet(images: list[Image.Image], columns: int, labels: list[str] | None = None) -> Image.Image:
    """Pictures of one size in rows, each over its label."""
    size, footer = images[0].width, 14 if labels else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * size, rows * (size + footer)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = i % columns * size, i // columns * (size + footer)
        sheet.paste(image, (x, y))
        if labels:
            draw.text((x + 2, y + size), labels[i][: size // 6], fill="black")
    return sheet
