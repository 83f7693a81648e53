"""Draw sheets of labelled images: grids of settings, and contact sheets of folders."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # pixels around images and labels
INK, PAPER = "black", "white"


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]], column_labels: Sequence[str], row_labels: Sequence[str], title: str = ""
) -> Image.Image:
    """Rows of images with labels for rows and columns; each cell has the size of the largest image or label."""
    font = _font(max(image.height for row in rows for image in row))
    width = max(max(image.width for row in rows for image in row), *(_width(font, label) for label in column_labels))
    height = max(image.height for row in rows for image in row)
    line = _line(font)
    left = max((_width(font, label) for label in row_labels), default=0) + MARGIN
    top = line * (2 if title else 1)
    columns = max(len(row) for row in rows)
    size = left + columns * (width + MARGIN), top + len(rows) * (height + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN // 2), title, INK, font)
    for k, label in enumerate(column_labels):
        draw.text((left + k * (width + MARGIN), top - line + MARGIN // 2), label, INK, font)
    for y, row in enumerate(rows):
        upper = top + y * (height + MARGIN)
        if y < len(row_labels):
            draw.text((MARGIN // 2, upper), row_labels[y], INK, font)
        for x, image in enumerate(row):
            sheet.paste(image, (left + x * (width + MARGIN), upper))
    return sheet


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int, side: int) -> Image.Image:
    """Thumbnails of up to `side` pixels in rows of `columns`, each above its label."""
    font = _font(side)
    line = _line(font)
    step = side + MARGIN
    pairs = list(zip(images, labels, strict=True))
    rows = [pairs[k : k + columns] for k in range(0, len(pairs), columns)]
    sheet = Image.new("RGB", (MARGIN + columns * step, MARGIN + len(rows) * (step + line)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (image, label) in enumerate(row):
            left, upper = MARGIN + x * step, MARGIN + y * (step + line)
            small = image.copy()
            small.thumbnail((side, side))
            sheet.paste(small, (left + (side - small.width) // 2, upper + (side - small.height) // 2))
            draw.text((left, upper + side), _shortened(label, font, side), INK, font)
    return sheet


def _font(side: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(min(max(side // 12, 10), 24))


def _width(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str) -> int:
    return int(font.getlength(text)) + 1


def _line(font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> int:
    return int(font.getbbox("Ag")[3]) + MARGIN


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while len(text) > 1 and _width(font, text) > width:
        text = text[:-2] + "…"
    return text
