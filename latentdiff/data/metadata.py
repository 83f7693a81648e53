"""Read metadata files with captions (`metadata.jsonl`, `.csv`, `.parquet`), as in Hugging Face's ImageFolder."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from latentdiff.data.archives import ARCHIVES, Container, is_text
from latentdiff.errors import InputError, shorten

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_KEYS = ("text", "caption", "prompt")


class Described(NamedTuple):
    """A picture that is listed in a metadata file, its captions, and its other columns."""

    picture: str
    captions: tuple[str, ...]
    columns: dict[str, Any]


def read_metadata(container: Container, name: str, names: "FileNames") -> Iterator[Described]:
    """The lines of one metadata file. Raises InputError for invalid lines and for missing pictures."""
    folder = PurePosixPath(name).parent
    for where, columns in _records(container, name):
        file_name = columns.get("file_name") if isinstance(columns, dict) else None
        if not isinstance(file_name, str) or not any(key in columns for key in ("captions", *CAPTION_KEYS)):
            raise InputError(f"{where}: {shorten(columns)}; each line needs file_name and text, as text")
        wanted = str(folder / file_name)
        picture = names.find(wanted) or names.find(wanted.replace("\\", "/"))
        if picture is None:
            garbled = " (the archive does not state the encoding of its file names; pack it again with UTF-8 names)"
            hint = garbled if container.garbled else ""
            raise InputError(
                f"{where}: {wanted} is not in {container.source}{hint}; restore the picture or remove the line"
            )
        try:
            captions = read_captions(columns, where)
        except TypeError as error:
            raise InputError(f"{where}: {shorten(columns)}; each line needs file_name and text, as text") from error
        yield Described(picture, captions, columns)


def read_captions(columns: dict[str, Any], where: str) -> tuple[str, ...]:
    """The captions in `captions`, else in the first of `text`, `caption` and `prompt` that is present.

    Each is a string or a list of strings. Raises TypeError for other values and InputError for lone surrogates.
    """
    key = next((key for key in ("captions", *CAPTION_KEYS) if columns.get(key)), None)
    value = columns[key] if key else []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(key)
    return tuple(caption for text in texts for caption in clean_caption(text, where))


def clean_caption(text: str, where: str) -> tuple[str, ...]:
    """The caption on one line, or nothing if it is blank. Raises InputError for lone surrogates."""
    if not is_text(text):
        raise InputError(f"{where}: {shorten(ascii(text))} has a lone surrogate; save the caption as UTF-8")
    text = " ".join(text.split())
    return (text,) if text else ()


def read_text(container: Container, name: str) -> str:
    """A text file of a container. Raises InputError if it cannot be read or is not UTF-8."""
    try:
        return container.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise InputError(f"{container.where(name)} is not UTF-8 ({reason}); save it as UTF-8") from error


class FileNames:
    """Finds files by name, whatever the Unicode form, the case of the suffix, or the archive that they are in.

    `images.zip/cat.png` is found as `cat.png` and `images/cat.png`, as ImageFolder datasets name it.
    """

    def __init__(self, container: Container) -> None:
        self.exact = set(container.names)
        self.similar: dict[str, str] = {}
        self.ambiguous: set[str] = set()
        for name in container.names:
            for alias in {_comparable(name), *map(_comparable, _outside_archive(name))}:
                if self.similar.setdefault(alias, name) != name:
                    self.ambiguous.add(alias)

    def find(self, name: str) -> str | None:
        """The file that `name` refers to, if it is unambiguous."""
        if name in self.exact:
            return name
        alias = _comparable(name)
        return None if alias in self.ambiguous else self.similar.get(alias)


def _comparable(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return unicodedata.normalize("NFC", name.removesuffix(suffix) + suffix.lower())


def _outside_archive(name: str) -> Iterator[str]:
    parts = name.split("/")
    for k, part in enumerate(parts[:-1]):
        if part.lower().endswith(ARCHIVES):
            yield "/".join((*parts[:k], *parts[k + 1 :]))
            yield "/".join((*parts[:k], PurePosixPath(part).stem, *parts[k + 1 :]))


def _records(container: Container, name: str) -> Iterator[tuple[str, Any]]:
    """The fields of each line of a metadata file, with the line's location for messages."""
    where = container.where(name)
    if name.endswith(".parquet"):
        yield from ((f"{where}:{k}", record) for k, record in enumerate(_parquet(container, name), 1))
    elif name.endswith(".csv"):
        yield from ((f"{where}:{k}", record) for k, record in _csv(read_text(container, name), where))
    else:
        for k, line in enumerate(io.StringIO(read_text(container, name), newline=None), 1):
            if line.strip():
                try:
                    yield f"{where}:{k}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{where}:{k}: {error}; each line is one JSON object") from error


def _csv(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and records. Raises InputError for a line with more or fewer fields than the header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for fields in reader:
            if fields and len(fields) != len(header):
                raise InputError(
                    f"{where}:{reader.line_num}: {len(fields)} fields, but the header has {len(header)}; "
                    "put double quotes around captions with commas"
                )
            if fields:
                yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{where} is damaged ({error}); look for an unpaired double quote") from error


def _parquet(container: Container, name: str) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"{name} needs pyarrow; pip install pyarrow, or save it as metadata.jsonl") from error
    try:
        records: list[dict[str, Any]] = parquet.read_table(io.BytesIO(container.read(name))).to_pylist()
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{container.where(name)} is damaged ({reason}); save it again") from error
    return records
