"""Open a data source given by a path, a pattern of paths, or a URL."""

from pathlib import Path

from latentdiff.data.archives import ARCHIVES, Container, open_container, open_folder_of_archives
from latentdiff.data.hub import is_saved, open_hub, open_saved
from latentdiff.data.parquet import holds_pictures, open_parquet
from latentdiff.data.shards import open_shards
from latentdiff.errors import InputError


def open_source(source: str | Path) -> Container:
    """Open a path, a brace pattern of shards, https:// shards or hf://owner/name.

    A path is a folder, an archive, a `.parquet` file with pictures, a folder of any of these, or a saved dataset. Only
    https://, http:// and hf:// use the network. Raises InputError if the source is invalid or cannot be read.
    """
    text, path = str(source), Path(source)
    if not text.strip():
        raise InputError("no pictures were given; give a folder, a .zip, a .tar, a pattern of shards or a URL")
    if text.startswith("hf://"):
        return open_hub(text)
    if "://" in text or ("{" in text and not path.exists()):
        return open_shards(text)
    if is_saved(path):
        return open_saved(path)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return open_parquet([path], text)
    container = open_container(path)
    if not path.is_dir() or container.pictures:
        return container
    if any(name.lower().endswith(ARCHIVES) for name in container.names):
        return open_folder_of_archives(container)
    tables = [path / name for name in container.names if name.lower().endswith(".parquet")]
    if tables and holds_pictures(tables[0]):
        return open_parquet(tables, text)
    return container
