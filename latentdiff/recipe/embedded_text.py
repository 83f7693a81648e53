"""Read the texts embedded in image files, without decoding pixels and with limits on their size."""

import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from latentdiff.errors import InputError
from latentdiff.images.decoding import PNG_SIGNATURE

MAX_TEXT = 1024 * 1024  # bytes of one text
MAX_FILE = 512 * 1024 * 1024  # bytes of a file that is not a PNG, which Pillow may read completely
FORMATS = ("JPEG", "WEBP", "GIF")
OURS = b"latentdiff\0"  # begins the maker note of JPEG and WebP files
UTF16 = b"UNICODE\0"
PROGRAM_TAGS = (ExifTags.Base.Make, ExifTags.Base.Model)  # ComfyUI writes "prompt:{...}" here in WebP files


def read_texts(path: Path) -> dict[str, str]:
    """Read the texts of any format, with the names that they have in PNG files: `latentdiff`, `parameters`, `prompt`.

    Raises InputError for a file that is not an image, and for texts larger than `MAX_TEXT`.
    """
    if path.suffix.lower() == ".mp4":
        return _mp4_texts(path)
    try:
        with path.open("rb") as file:
            if file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE:
                return dict(_png_texts(file, path))
        if path.stat().st_size > MAX_FILE:
            raise InputError(f"{path} is larger than {MAX_FILE} bytes; use a smaller file")
        with Image.open(path, formats=FORMATS) as image:
            return _gif_texts(image) if image.format == "GIF" else _exif_texts(image, path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable PNG, JPEG, WebP or GIF ({error}); use another file") from error


def _png_texts(file: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    """Source: PNG specification (third edition), sections 5.3 and 11.3.3."""
    while len(header := file.read(8)) == 8:
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"iTXt", b"zTXt"):
            file.seek(length + 4, 1)
            continue
        _check_size(length, path)
        data = file.read(length)
        file.seek(4, 1)
        name, _, rest = data.partition(b"\0")
        yield name.decode("latin-1"), _png_text(kind, rest, path)


def _png_text(kind: bytes, rest: bytes, path: Path) -> str:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(rest[1:], path).decode("latin-1")
    packed = rest[:1] == b"\1"
    fields = rest[2:].split(b"\0", 2)  # language, translated name, text
    if len(fields) < 3:
        raise InputError(f"{path}: an embedded text is truncated; use another file")
    text = fields[2]
    return (_inflate(text, path) if packed else text).decode("utf-8", "replace")


def _inflate(data: bytes, path: Path) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT + 1)
    except zlib.error as error:
        raise InputError(f"{path}: an embedded text is damaged ({error}); use another file") from error
    _check_size(len(text), path)
    return text


def _exif_texts(image: Image.Image, path: Path) -> dict[str, str]:
    _check_size(len(image.info.get("exif", b"")), path)
    exif = image.getexif()
    fields, texts = exif.get_ifd(ExifTags.IFD.Exif), {}
    comment, note = fields.get(ExifTags.Base.UserComment), fields.get(ExifTags.Base.MakerNote)
    if isinstance(comment, bytes) and comment[:8] in (UTF16, b"ASCII\0\0\0", b"\0" * 8):
        is_wide = comment[:8] == UTF16
        texts["parameters"] = comment[8:].decode("utf-16-be" if is_wide else "utf-8", "replace").strip("\0")
    if isinstance(note, bytes) and note.startswith(OURS):
        texts["latentdiff"] = note.removeprefix(OURS).decode("utf-8", "replace")
    for tag in PROGRAM_TAGS:
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and name == "prompt":
            texts["prompt"] = text
    return texts


def _gif_texts(image: Image.Image) -> dict[str, str]:
    comment = image.info.get("comment", b"")
    name, _, text = comment[:MAX_TEXT].partition(b"\0")
    return {"latentdiff": text.decode("utf-8", "replace")} if name == b"latentdiff" else {}


def _mp4_texts(path: Path) -> dict[str, str]:
    """The text in the comment that `animations.py` writes."""
    if find_spec("av") is None:
        raise InputError(f'reading {path} requires PyAV; pip install "latentdiff[video]"')
    import av

    try:
        with av.open(str(path)) as container:
            comment = container.metadata.get("comment", "")
    except (OSError, ValueError) as error:  # the bases of PyAV's errors
        raise InputError(f"{path}: not a readable MP4 ({error}); use another file") from error
    _check_size(len(comment), path)
    name, _, text = comment.partition(":")
    return {"latentdiff": text} if name == "latentdiff" else {}


def _check_size(length: int, path: Path) -> None:
    if length > MAX_TEXT:
        raise InputError(f"{path}: an embedded text is larger than {MAX_TEXT} bytes; use a file with smaller metadata")
