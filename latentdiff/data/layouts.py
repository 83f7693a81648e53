"""Find the captions of a folder: in a metadata file, beside each picture, in folder names, or in file names."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from latentdiff.config.train import CLASS_NAME
from latentdiff.data.archives import ARCHIVES, PICTURES, Container, is_picture
from latentdiff.data.metadata import METADATA, FileNames, clean_caption, read_captions, read_metadata, read_text
from latentdiff.errors import InputError, shorten

TEXTS = (".txt", ".caption")
SIDECARS = (*TEXTS, ".json")
REPEATS = re.compile(r"([1-9]\d{0,2})_(.+)")  # 2024_spring is a name
DOCUMENTS = re.compile(r"(?i)(readme|licen[cs]e|notice|copying|changelog)\b.*|.*\.md|thumbs\.db|desktop\.ini")


@dataclass(frozen=True)
class Row:
    """One picture of a container, its alternative captions, and how often an epoch shows it.

    columns: what the metadata file says about it. weight: of its loss.
    """

    container: Container = field(repr=False)
    name: str
    captions: tuple[str, ...]
    columns: dict[str, Any] = field(default_factory=dict)
    repeats: int = 1
    weight: float = 1.0

    @property
    def where(self) -> str:
        """The picture's full name, for messages."""
        return self.container.where(self.name)

    @property
    def picture(self) -> tuple[str, str]:
        """Which picture this is: rows that show one picture several times have the same."""
        return self.container.source, self.name

    def read(self) -> bytes:
        return self.container.read(self.name)


@dataclass(frozen=True)
class Layout:
    """The rows of a container and where their captions are from; `ignored`: files that were not used, and why."""

    kind: str
    rows: list[Row]
    ignored: list[tuple[str, str]] = field(default_factory=list)


def read_layout(container: Container, caption_template: str = CLASS_NAME) -> Layout:
    """Decide from a container's files where captions are from, and read them. The first rule that fits decides:

    1. a metadata file with `file_name`, and `text`, `caption`, `prompt` or a list of `captions`; pictures that it does
       not name have no caption;
    2. files beside the pictures: `.txt`, `.caption`, or `.json` with the same keys, named `cat.txt` or `cat.png.txt`;
    3. `.cls` files beside the pictures with the name of a class;
    4. folders named `10_name`: a class, shown ten times an epoch (the number also counts with files beside pictures);
    5. one folder per class; a single folder is one if `caption_template` is not the default;
    6. file names, unless a camera or a program chose them.

    Names of classes are inserted into `caption_template`. Raises InputError for a container without pictures and for
    broken metadata.
    """
    metadata = [name for name in container.names if PurePosixPath(name).name in METADATA]
    files = FileNames(container)
    rows = [Row(container, *described) for name in metadata for described in read_metadata(container, name, files)]
    pictures = container.pictures
    if metadata and (rows or pictures):
        described = {row.name for row in rows}
        rows += [Row(container, name, ()) for name in sorted({*pictures} - described)]
        return Layout("metadata", rows, list(_ignored(container, {*metadata, *described}, "metadata has the captions")))
    if not pictures:
        kinds = ", ".join(sorted(PICTURES))
        raise InputError(f"{container.source} holds no pictures; add files ending in {kinds}")
    kind, rows, used = _without_metadata(container, files, pictures, caption_template)
    return Layout(kind, rows, list(_ignored(container, used, "no picture has this name")))


def _without_metadata(
    container: Container, files: FileNames, pictures: list[str], template: str
) -> tuple[str, list[Row], set[str]]:
    """The name of the layout, its rows, and the caption files that it uses."""
    folders = {_folder(name) for name in pictures}
    repeated = all(REPEATS.fullmatch(folder) for folder in folders)
    beside = {name: found for name in pictures if (found := _beside(name, files, SIDECARS))}
    rows = [_sidecar_row(container, name, beside.get(name), repeated) for name in pictures]
    if any(row.captions for row in rows) or any(name.lower().endswith(TEXTS) for name in beside.values()):
        return "sidecar files", rows, {*beside.values()}
    classes = {name: found for name in pictures if (found := _beside(name, files, (".cls",)))}
    if classes:
        names = {name: read_text(container, found) for name, found in classes.items()}
        rows = [_named_row(container, name, names.get(name, ""), template) for name in pictures]
        return "class files", rows, {*classes.values()}
    if repeated:
        return "folders of repeats", [_repeats_row(container, name, template) for name in pictures], set()
    if "" not in folders and (len(folders) > 1 or template != CLASS_NAME):
        return "a folder per class", [_named_row(container, k, _folder(k), template) for k in pictures], set()
    return "file names", [_named_row(container, name, PurePosixPath(name).stem) for name in pictures], set()


def _ignored(container: Container, used: set[str], unused_text: str) -> Iterable[tuple[str, str]]:
    """Files that a user may expect to be read and that are not, with the reason; documents are not among them."""
    for name in container.names:
        suffix = PurePosixPath(name).suffix.lower()
        if name in used or is_picture(name) or DOCUMENTS.fullmatch(PurePosixPath(name).name):
            continue
        if suffix in (*SIDECARS, ".cls"):
            yield name, unused_text
        elif suffix in ARCHIVES:
            yield name, "archives beside pictures are not opened; give it by itself or unpack it"
        else:
            yield name, f"{suffix or 'no suffix'} is not an image format that is read"


def _beside(picture: str, files: FileNames, suffixes: tuple[str, ...]) -> str | None:
    stem = picture[: -len(PurePosixPath(picture).suffix)]
    found = (files.find(base + suffix) for base in (stem, picture) for suffix in suffixes)
    return next((name for name in found if name), None)


def _sidecar_row(container: Container, picture: str, sidecar: str | None, repeated: bool) -> Row:
    repeats = _repeats(picture) if repeated else 1
    if sidecar is None:
        return Row(container, picture, (), repeats=repeats)
    where = container.where(sidecar)
    if not sidecar.lower().endswith(".json"):
        return Row(container, picture, clean_caption(read_text(container, sidecar), where), repeats=repeats)
    columns = _json_object(container, sidecar)
    try:
        return Row(container, picture, read_captions(columns, where), columns, repeats)
    except TypeError as error:
        value = columns[str(error)]
        raise InputError(f"{where}: {error}={shorten(value)} is not a caption; give a string or a list") from error


def _json_object(container: Container, name: str) -> dict[str, Any]:
    """An empty one if the file holds another value: annotation tools keep boxes and outlines there."""
    text = read_text(container, name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{container.where(name)}: {error}; repair or remove it") from error
    return value if isinstance(value, dict) else {}


def _repeats_row(container: Container, picture: str, template: str) -> Row:
    _, _, name = _folder(picture).partition("_")
    return replace(_named_row(container, picture, name, template), repeats=_repeats(picture))


def _repeats(picture: str) -> int:
    return int(_folder(picture).partition("_")[0])


def _named_row(container: Container, picture: str, name: str, template: str = CLASS_NAME) -> Row:
    """A row whose caption is the name of its class, folder or file. Raises InputError if its encoding is unknown."""
    words, where = _words(name), container.where(picture)
    if picture in container.garbled and not words.isascii():
        raise InputError(
            f"{where}: the archive does not state the encoding of its file names, so {shorten(words)} is no caption; "
            "pack it again with UTF-8 names, or add caption files"
        )
    return Row(container, picture, clean_caption(template.format(name=words), where) if words else ())


def _folder(picture: str) -> str:
    """The name of the folder that a picture is in; an archive is not a folder."""
    name = PurePosixPath(picture).parent.name
    return "" if name.lower().endswith(ARCHIVES) else name


def _words(name: str) -> str:
    """`red-apple_02 (1)` becomes `red apple`; empty for a name that a camera or a program chose."""
    text = re.sub(r"[_\-.+\s]+", " ", re.sub(r"\(\d+\)$", "", name.strip()))
    text = re.sub(r"(\s\d+)+$", "", text).strip()
    numbered = re.fullmatch(r"(?i)(img|dsc[fn]?|image|photo|picture|screenshot|untitled|file)?\s?[\d\s]*", text)
    hexadecimal = re.fullmatch(r"(?i)(?=.*\d)[0-9a-f\s]{8,}", text)
    return "" if numbered or hexadecimal else text
