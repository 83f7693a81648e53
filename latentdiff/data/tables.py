"""Tables with a column of pictures, presented as a container of pictures and a metadata file."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from latentdiff.data.archives import MAX_FILE, Container
from latentdiff.data.metadata import CAPTION_KEYS
from latentdiff.errors import InputError, did_you_mean, shorten

METADATA = "metadata.jsonl"


def table_container(
    source: str,
    count: int,
    picture: Callable[[int], Any],
    records: Callable[[], Iterable[dict[str, Any]]],
    text: str | None,
) -> Container:
    """Row 12 becomes the picture `00000012`; captions and the other simple columns become lines of `metadata.jsonl`.

    picture(k): the bytes of row k or `{"bytes": ..., "path": ...}`. records(): the other columns of every row.
    text: the column of captions. Raises InputError for a table without rows.
    """
    if not count:
        raise InputError(f"{source} contains no pictures; use another split or dataset")
    names = tuple(f"{k:08}" for k in range(count))

    def read(name: str) -> bytes:
        if name == METADATA:
            lines = (_metadata_line(*pair, text, source) for pair in zip(names, records(), strict=True))
            return "\n".join(lines).encode()
        return _picture_bytes(picture(int(name)), f"{source}/{name}")

    return Container(source, (*names, METADATA), read)


def image_column(images: Sequence[str], source: str, requested: str | None = None) -> str:
    """The requested column of pictures, else `image`, else the only one. Raises InputError."""
    wanted = requested or ("image" if "image" in images or len(images) != 1 else images[0])
    if wanted not in images:
        raise InputError(f"{source} has no column {wanted!r} of pictures; it has {', '.join(images) or 'none'}")
    return wanted


def text_column(columns: Sequence[str], source: str, requested: str | None = None) -> str | None:
    """The requested column, else the first one with a common name; None if there is none. Raises InputError."""
    if requested is not None and requested not in columns:
        raise InputError(f"{source} has no column {requested!r}; {did_you_mean(requested, columns)}")
    return requested or next((key for key in CAPTION_KEYS if key in columns), None)


def _metadata_line(name: str, row: dict[str, Any], text: str | None, source: str) -> str:
    value = row[text] if text else None
    captions = value if isinstance(value, list) else [value or ""]
    if not all(isinstance(caption, str) for caption in captions):
        raise InputError(
            f"{source}: column {text!r} contains {shorten(value)}, not a caption; name another with ?text="
        )
    plain = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
    return json.dumps(plain | {"file_name": name, "captions": captions or [""]})


def _picture_bytes(value: Any, where: str) -> bytes:
    """The stored bytes, or the bytes of the file whose path is stored."""
    try:
        if isinstance(value, dict):
            value = value["bytes"] or Path(value["path"]).read_bytes()
        data = bytes(value) if value else b""
    except (OSError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} cannot be read ({reason}); save the dataset with its pictures") from error
    if len(data) > MAX_FILE:
        raise InputError(f"{where} has {len(data)} bytes, more than {MAX_FILE}; remove it")
    return data
