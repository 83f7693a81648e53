"""Parquet files with a column of pictures, as the Hugging Face hub stores image datasets."""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentdiff.data.archives import Container
from latentdiff.data.tables import image_column, table_container, text_column
from latentdiff.errors import InputError

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile


def holds_pictures(path: Path) -> bool:
    """Whether a parquet file has a column of pictures. Raises InputError."""
    return bool(_image_columns(_open(path).schema_arrow))


def open_parquet(paths: Sequence[Path], source: str) -> Container:
    """The rows of parquet files of one schema, in the order of the files.

    Raises InputError without pyarrow, for damaged files, for several schemas, and without a column of pictures.
    """
    schemas = [_open(path).schema_arrow for path in paths]
    for path, schema in zip(paths, schemas, strict=True):
        if schema.names != schemas[0].names:
            raise InputError(f"{path} has other columns than {paths[0]}; move them to separate folders")
    images = _image_columns(schemas[0])
    image = image_column(images, source)
    others = [name for name in schemas[0].names if name not in images]
    groups = _RowGroups(paths, image)

    def records() -> Iterator[dict[str, Any]]:
        for path in paths:
            with _named(path):
                for batch in _open(path).iter_batches(columns=others, use_threads=False):
                    yield from batch.to_pylist()

    return table_container(source, groups.rows, groups.picture, records, text_column(others, source))


def _open(path: Path) -> "ParquetFile":
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow; pip install pyarrow") from error
    with _named(path):
        return ParquetFile(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Convert pyarrow's errors to InputError."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); save it again") from error


def _image_columns(schema: "Schema") -> list[str]:
    """Columns of bytes, or of structs of `bytes` and `path`, which the datasets package writes."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return [field.name for field in schema if holds_bytes(field.type)]


class _RowGroups:
    """Random access to one column. The row group read last stays in memory, since rows are mostly read in order."""

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self.column = column
        self.groups: list[tuple[Path, int]] = []
        sizes = []
        for path in paths:
            metadata = _open(path).metadata
            self.groups += [(path, k) for k in range(metadata.num_row_groups)]
            sizes += [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        self.ends = list(accumulate(sizes))
        self.rows = self.ends[-1] if self.ends else 0
        self.lock = threading.Lock()
        self.last: tuple[int, Any] = (-1, None)

    def picture(self, row: int) -> Any:
        group = bisect_right(self.ends, row)
        with self.lock:
            if self.last[0] != group:
                self.last = (group, self._read(*self.groups[group]))
            values = self.last[1]
        return values[row - (self.ends[group - 1] if group else 0)].as_py()

    def _read(self, path: Path, group: int) -> Any:
        with _named(path):
            return _open(path).read_row_group(group, columns=[self.column], use_threads=False).column(0)
