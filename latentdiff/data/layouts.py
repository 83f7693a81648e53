"""Where the captions are: in a metadata file, beside each picture, in folder names, or in the file names."""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from latentdiff.data.containers import Container
from latentdiff.errors import InputError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".apng", ".bmp", ".tif", ".tiff", ".avif"}
SIDECARS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
REPEATS = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class Row:
    """One picture: its name in `container`, the captions any of which describes it, how often an epoch shows it."""

    container: Container = field(repr=False)
    name: str
    captions: tuple[str, ...]
    columns: dict[str, Any] = field(default_factory=dict)
    repeats: int = 1

    @property
    def where(self) -> str:
        """The picture's full name, for messages."""
        return str(self.container.path / self.name)

    def read(self) -> bytes:
        return self.container.read(self.name)


@dataclass(frozen=True)
class Layout:
    """How a container was understood, in words, and its rows."""

    kind: str
    rows: list[Row]


def read_layout(container: Container, caption_template: str = "{name}") -> Layout:
    """Understand a container by what is in it; the first of these that fits.

    A metadata file (`file_name`, and `text` or `captions`); `.txt` or `.caption` files beside the pictures; folders
    named `10_name` (shown ten times an epoch) or one folder a class, captioned by `caption_template`; file names.
    Raises InputError for a container without pictures and for broken metadata.
    """
    pictures = [name for name in container.names if PurePosixPath(name).suffix.lower() in PICTURES]
    metadata = [name for name in container.names if PurePosixPath(name).name in METADATA]
    if metadata:
        return Layout("metadata", [row for name in metadata for row in _metadata_rows(container, name)])
    if not pictures:
        kinds = ", ".join(sorted(PICTURES))
        raise InputError(f"{container.path} holds no pictures; put files ending in {kinds} there")
    names = set(container.names)
    if any(_sidecar(name, names) for name in pictures):
        return Layout("sidecar files", [_sidecar_row(container, name, names) for name in pictures])
    folders = {PurePosixPath(name).parent.name for name in pictures}
    if "" not in folders and all(REPEATS.fullmatch(folder) for folder in folders):
        return Layout("folders of repeats", [_repeats_row(container, name, caption_template) for name in pictures])
    if "" not in folders and len(folders) > 1:
        return Layout("a folder a class", [_class_row(container, name, caption_template) for name in pictures])
    return Layout(
        "file names", [Row(container, name, _captions(_words(PurePosixPath(name).stem))) for name in pictures]
    )


def _metadata_rows(container: Container, name: str) -> Iterable[Row]:
    inside, known = PurePosixPath(name).parent, set(container.names)
    for where, columns in _records(container, name):
        try:
            file_name, captions = columns["file_name"], columns.get("captions") or [columns["text"] or ""]
            picture = str(inside / file_name)
            texts = tuple(text for text in captions if text.strip())
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: {error!r}; each line needs file_name and text") from error
        if picture not in known:
            raise InputError(f"{where}: {picture} is not in {container.path}; restore the picture or remove the line")
        yield Row(container, picture, texts, columns)


def _records(container: Container, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    where = container.path / name
    if name.endswith(".parquet"):
        yield from ((f"{where}:{k}", record) for k, record in enumerate(_parquet(container, name), 1))
        return
    try:
        text = container.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if name.endswith(".csv"):
        yield from ((f"{where}:{k}", record) for k, record in enumerate(csv.DictReader(io.StringIO(text)), 2))
        return
    for k, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"{where}:{k}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}:{k}: {error}; each line is one JSON object") from error


def _parquet(container: Container, name: str) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise InputError(f"{name} needs pyarrow; pip install pyarrow, or save it as metadata.jsonl") from error
    try:
        return parquet.read_table(io.BytesIO(container.read(name))).to_pylist()
    except ArrowInvalid as error:
        raise InputError(f"{container.path / name} is damaged ({error}); save it again") from error


def _sidecar(picture: str, names: set[str]) -> str | None:
    stem = picture[: -len(PurePosixPath(picture).suffix)]
    return next((stem + suffix for suffix in SIDECARS if stem + suffix in names), None)


def _sidecar_row(container: Container, picture: str, names: set[str]) -> Row:
    beside = _sidecar(picture, names)
    if beside is None:
        return Row(container, picture, ())
    try:
        text = container.read(beside).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{container.path / beside} is not UTF-8; save it as UTF-8") from error
    return Row(container, picture, _captions(" ".join(text.split())))


def _repeats_row(container: Container, picture: str, template: str) -> Row:
    match = REPEATS.fullmatch(PurePosixPath(picture).parent.name)
    assert match is not None
    return Row(container, picture, _captions(template.format(name=_words(match[2]))), repeats=int(match[1]))


def _class_row(container: Container, picture: str, template: str) -> Row:
    return Row(container, picture, _captions(template.format(name=_words(PurePosixPath(picture).parent.name))))


def _words(name: str) -> str:
    """`red-apple_02 (1)` -> `red apple`; nothing where a camera or a program named the file."""
    text = re.sub(r"[_\-.+\s]+", " ", re.sub(r"\(\d+\)$", "", name.strip()))
    text = re.sub(r"(\s\d+)+$", "", text).strip()
    numbered = re.fullmatch(r"(?i)(img|dsc[fn]?|image|photo|picture|screenshot|untitled|file)?\s?[\d\s]*", text)
    hexadecimal = re.fullmatch(r"(?i)(?=.*\d)[0-9a-f\s]{8,}", text)
    return "" if numbered or hexadecimal else text


def _captions(text: str) -> tuple[str, ...]:
    return (text.strip(),) if text.strip() else ()
