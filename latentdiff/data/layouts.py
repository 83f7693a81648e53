"""Where the captions are: in a metadata file, beside each picture, in folder names, or in the file names."""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from latentdiff.config.train import CLASS_NAME, check_template
from latentdiff.data.archives import PICTURES, Container, is_text
from latentdiff.errors import InputError

TEXTS = (".txt", ".caption")
CAPTION_KEYS = ("text", "caption", "prompt")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
REPEATS = re.compile(r"([1-9]\d{0,2})_(.+)")  # 2024_spring is a name


@dataclass(frozen=True)
class Row:
    """One picture: its name in `container`, the captions any of which describes it, how often an epoch shows it."""

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

    def read(self) -> bytes:
        return self.container.read(self.name)


@dataclass(frozen=True)
class Layout:
    """How a container was understood, in words, and its rows."""

    kind: str
    rows: list[Row]


def read_layout(container: Container, caption_template: str = CLASS_NAME) -> Layout:
    """Understand a container by what is in it; the first of these that fits.

    A metadata file (`file_name`, and `text` or `captions`); beside the pictures `.txt` or `.caption` files, or `.json`
    with `text`, `caption` or `prompt`, or `.cls` with the name of a class; folders named `10_name` (shown ten times an
    epoch, also with files beside the pictures) or one folder a class; file names. Names of classes and folders are put
    into `caption_template`; with one that was chosen, a single folder is a class. Pictures that no metadata file names
    have no caption.
    Raises InputError for a container without pictures, broken metadata and a template without `{name}`.
    """
    check_template(caption_template)
    names, pictures = {_with_lower_suffix(name): name for name in container.names}, container.pictures
    metadata = [name for name in container.names if PurePosixPath(name).name in METADATA]
    rows = [row for name in metadata for row in _metadata_rows(container, name)]
    if metadata and (rows or pictures):
        unnamed = sorted({*pictures} - {row.name for row in rows})
        return Layout("metadata", [*rows, *(Row(container, name, ()) for name in unnamed)])
    if not pictures:
        kinds = ", ".join(sorted(PICTURES))
        raise InputError(f"{container.source} holds no pictures; put files ending in {kinds} there")
    folders = {_folder(name) for name in pictures}
    repeated = all(REPEATS.fullmatch(folder) for folder in folders)
    rows = [_sidecar_row(container, name, names, repeated) for name in pictures]
    if any(row.captions for row in rows) or any(_beside(name, names, TEXTS) for name in pictures):
        return Layout("sidecar files", rows)
    if any(_beside(name, names, (".cls",)) for name in pictures):
        return Layout("class files", [_class_file_row(container, name, names, caption_template) for name in pictures])
    if repeated:
        return Layout("folders of repeats", [_repeats_row(container, name, caption_template) for name in pictures])
    if "" not in folders and (len(folders) > 1 or caption_template != CLASS_NAME):
        rows = [_named_row(container, name, _folder(name), caption_template) for name in pictures]
        return Layout("a folder a class", rows)
    return Layout("file names", [_named_row(container, name, PurePosixPath(name).stem) for name in pictures])


def _metadata_rows(container: Container, name: str) -> Iterable[Row]:
    inside, known = PurePosixPath(name).parent, set(container.names)
    for where, columns in _records(container, name):
        try:
            captions = columns.get("captions") or [columns["text"] or ""]
            picture = str(inside / columns["file_name"])
            texts = tuple(caption for text in captions for caption in _captions(text, where))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: {str(columns)[:80]}; each line needs file_name and text, as text") from error
        if picture not in known:
            raise InputError(f"{where}: {picture} is not in {container.source}; restore the picture or remove the line")
        yield Row(container, picture, texts, columns)


def _records(container: Container, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    where = container.where(name)
    if name.endswith(".parquet"):
        yield from ((f"{where}:{k}", record) for k, record in enumerate(_parquet(container, name), 1))
        return
    text = _text(container, name)
    if name.endswith(".csv"):
        yield from ((f"{where}:{k}", record) for k, record in enumerate(_csv(text, where), 2))
        return
    for k, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"{where}:{k}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}:{k}: {error}; each line is one JSON object") from error


def _csv(text: str, where: str) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise InputError(f"{where} is damaged ({error}); look for a quote that is not closed") from error


def _text(container: Container, name: str) -> str:
    where = container.where(name)
    try:
        return container.read(name).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}); mend or remove it") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _parquet(container: Container, name: str) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"{name} needs pyarrow; pip install pyarrow, or save it as metadata.jsonl") from error
    try:
        return parquet.read_table(io.BytesIO(container.read(name))).to_pylist()
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{container.where(name)} is damaged ({reason}); save it again") from error


def _with_lower_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) + suffix.lower()


def _beside(picture: str, names: dict[str, str], suffixes: tuple[str, ...]) -> str | None:
    stem = picture[: -len(PurePosixPath(picture).suffix)]
    return next((names[stem + suffix] for suffix in suffixes if stem + suffix in names), None)


def _sidecar_row(container: Container, picture: str, names: dict[str, str], repeated: bool) -> Row:
    beside, repeats = _beside(picture, names, (*TEXTS, ".json")), _repeats(picture) if repeated else 1
    if beside is None:
        return Row(container, picture, (), repeats=repeats)
    where = container.where(beside)
    if beside.lower().endswith(".json"):
        columns = _json_object(container, beside)
        return Row(container, picture, _json_captions(columns, where), columns, repeats)
    return Row(container, picture, _captions(_text(container, beside), where), repeats=repeats)


def _json_object(container: Container, name: str) -> dict[str, Any]:
    """Nothing where the file holds something else: other programs keep boxes and outlines there."""
    try:
        value = json.loads(_text(container, name))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{container.where(name)}: {error}; mend or remove it") from error
    return value if isinstance(value, dict) else {}


def _json_captions(columns: dict[str, Any], where: str) -> tuple[str, ...]:
    key = next((key for key in CAPTION_KEYS if columns.get(key)), None)
    value = columns[key] if key else []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: {key}={value!r} is no caption; give a string or a list of strings")
    return tuple(caption for text in texts for caption in _captions(text, where))


def _class_file_row(container: Container, picture: str, names: dict[str, str], template: str) -> Row:
    beside = _beside(picture, names, (".cls",))
    return _named_row(container, picture, _text(container, beside) if beside else "", template)


def _repeats_row(container: Container, picture: str, template: str) -> Row:
    _, _, name = _folder(picture).partition("_")
    return replace(_named_row(container, picture, name, template), repeats=_repeats(picture))


def _repeats(picture: str) -> int:
    return int(_folder(picture).partition("_")[0])


def _named_row(container: Container, picture: str, name: str, template: str = CLASS_NAME) -> Row:
    words = _words(name)
    where = container.where(picture)
    return Row(container, picture, _captions(template.format(name=words), where) if words else ())


def _folder(picture: str) -> str:
    """The folder a picture is in; a shard is none."""
    name = PurePosixPath(picture).parent.name
    return "" if name.endswith(".tar") else name


def _words(name: str) -> str:
    """`red-apple_02 (1)` -> `red apple`; nothing where a camera or a program named the file."""
    text = re.sub(r"[_\-.+\s]+", " ", re.sub(r"\(\d+\)$", "", name.strip()))
    text = re.sub(r"(\s\d+)+$", "", text).strip()
    numbered = re.fullmatch(r"(?i)(img|dsc[fn]?|image|photo|picture|screenshot|untitled|file)?\s?[\d\s]*", text)
    hexadecimal = re.fullmatch(r"(?i)(?=.*\d)[0-9a-f\s]{8,}", text)
    return "" if numbered or hexadecimal else text


def _captions(text: str, where: str) -> tuple[str, ...]:
    if not is_text(text):
        raise InputError(f"{where}: {text[:80]!a} holds half a character; write it anew as UTF-8")
    text = " ".join(text.split())
    return (text,) if text else ()
