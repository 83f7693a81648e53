"""Decoding: colours of every format and mode, orientation, limits, and damaged files."""

import io
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.errors import InputError
from latentdiff.images import decoding
from latentdiff.images.decoding import _to_eight_bits, decode, measure
from latentdiff.images.fit import centre_square


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (8, 8), (200, 30, 40))
DEEP = Image.fromarray(np.full((8, 8), 200 * 257, dtype=np.uint16))


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(RED, "PNG"), (200, 30, 40)),
        (encode(RED, "JPEG", quality=98), (200, 30, 40)),
        (encode(RED, "WEBP", lossless=True), (200, 30, 40)),
        (encode(RED, "BMP"), (200, 30, 40)),
        (encode(RED, "TIFF"), (200, 30, 40)),
        (encode(RED, "AVIF", quality=95), (200, 30, 40)),
        (encode(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]), (200, 30, 40)),
        (encode(RED, "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]), (200, 30, 40)),
        (encode(RED.convert("CMYK"), "JPEG", quality=98), (200, 30, 40)),
        (encode(RED.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), (200, 30, 40)),
        (encode(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
        (encode(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
        (encode(DEEP, "PNG"), (200, 200, 200)),
        (encode(DEEP, "TIFF"), (200, 200, 200)),
        (encode(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF"), (128, 128, 128)),
        (encode(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encode(Image.new("LA", (8, 8), (0, 0)), "PNG"), (255, 255, 255)),
        (encode(Image.new("P", (8, 8), 0), "PNG", transparency=0), (255, 255, 255)),
    ],
)
def test_every_format_and_mode_decodes_to_its_colour(data: bytes, colour: tuple[int, int, int]) -> None:
    image = decode(data, "x")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int)[4, 4] - colour).max() <= 4


def test_transparency_is_flattened_onto_the_background() -> None:
    assert decode(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG"), "x", "blue").getpixel((0, 0)) == (0, 0, 255)


CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}  # EXIF 2.3, 4.6.4


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_size_and_pixels_follow_the_exif_orientation(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (24, 16))
    image.paste((255, 255, 255), (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, kind, exif=exif)
    decoded = decode(data, "x")
    assert measure(data, "x") == decoded.size == ((24, 16) if orientation < 5 else (16, 24))
    right, below = CORNERS[orientation]
    corner = decoded.resize((2, 2), Image.Resampling.BOX).convert("L")
    assert max((x, y) for x in (0, 1) for y in (0, 1) if corner.getpixel((x, y)) > 128) == (right, below)  # type: ignore[operator]


def large_profile() -> dict[str, Any]:
    return {"icc_profile": random.Random(0).randbytes(3_000_000)}


def large_text() -> dict[str, Any]:
    info = PngInfo()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    return {"pnginfo": info}


@pytest.mark.parametrize("metadata", [large_profile, large_text])
def test_png_files_with_large_metadata_are_decoded(metadata: Callable[[], dict[str, Any]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (24, 16), (0, 0, 0, 0))
    data = encode(image, "PNG", exif=exif, **metadata())
    assert measure(data, "x") == (16, 24)
    decoded = decode(data, "x", "red")
    assert decoded.size == (16, 24) and decoded.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_16_bit_greys_are_scaled_without_a_second_large_copy(dtype: Any) -> None:
    values = np.linspace(0, 65535, 1024 * 1024).reshape(1024, 1024)
    image = Image.fromarray(values.astype(dtype))
    tracemalloc.start()
    result = _to_eight_bits(np.asarray(image))  # Pillow's bytes, one copy, and the result; 64 rows of float32 at a time
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.abs(result.astype(int) - np.round(values / 257)).max() <= 1
    assert peak < image.width * image.height * (1 + 2 * np.dtype(dtype).itemsize) + 2 * 2**20


def test_values_that_are_not_finite_are_black_or_white() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 300.0]], dtype=np.float32)
    assert _to_eight_bits(values).tolist() == [[0, 255, 0, 1]]


def test_fit_keeps_the_centre_square() -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    assert np.asarray(centre_square(image, 10)).min() == 255


NOISE = Image.effect_noise((64, 64), 80).convert("RGB")


def cut(kind: str, share: float) -> bytes:
    data = encode(NOISE, kind)
    return data[: int(len(data) * share)]


def scrambled_png() -> bytes:
    data = bytearray(encode(NOISE, "PNG"))
    data[200:220] = bytes(20)
    return bytes(data)


DAMAGE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(1000),
    "text": lambda: b"<html>404</html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    "pdf": lambda: b"%PDF-1.7\n",
    "png head only": lambda: encode(NOISE, "PNG")[:24],
    "png cut": lambda: cut("PNG", 0.5),
    "png scrambled": scrambled_png,
    "jpeg cut": lambda: cut("JPEG", 0.5),
    "webp cut": lambda: cut("WEBP", 0.5),
    "gif cut": lambda: cut("GIF", 0.2),
    "bmp cut": lambda: cut("BMP", 0.5),
    "tiff cut": lambda: cut("TIFF", 0.5),
    "avif cut": lambda: cut("AVIF", 0.5),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_one_line_errors(name: str) -> None:
    with pytest.raises(InputError, match=r"bad\.png: not a readable image .*; replace or remove it") as caught:
        decode(DAMAGE[name](), "bad.png")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_random_damage_is_decoded_or_a_one_line_error(kind: str) -> None:
    """Pillow raises RuntimeError, struct.error and others for invalid bytes."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole, rng = encode(NOISE.resize((16, 16)), kind, exif=exif), random.Random(0)
    messages: list[str] = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        for read in (decode, measure):
            try:
                read(bytes(data), "bad")
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 20 and not any("\n" in line or " at 0x" in line for line in messages)


def test_decompression_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (20, 20)), "BMP")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="20x20 is more than 100 pixels"):
        decode(data, "x")


def test_sizes_that_pillow_refuses_have_the_same_message(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (20, 20)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=f"x has more than {decoding.MAX_PIXELS} pixels; reduce it first"):
        decode(data, "x")
