"""Where pictures come from, as a user writes it: a path, a pattern of paths, an address."""

from pathlib import Path

from latentdiff.data.archives import Container, join, open_container
from latentdiff.data.hub import is_saved, open_hub, open_saved
from latentdiff.data.shards import open_shards
from latentdiff.errors import InputError


def open_source(source: str | Path) -> Container:
    """Open a path (also a folder of .tar shards or of a saved dataset), a brace pattern, https:// shards or hf://.

    Only the last two use the network. Raises InputError for what is none of these and what cannot be read.
    """
    text, path = str(source), Path(source)
    if not text.strip():
        raise InputError("no pictures were named; give a folder, a .zip, a .tar, a pattern of shards or an address")
    if text.startswith("hf://"):
        return open_hub(text)
    if "://" in text or ("{" in text and not path.exists()):
        return open_shards(text)
    if is_saved(path):
        return open_saved(path)
    container = open_container(path)
    shards = [name for name in container.names if name.endswith(".tar")]
    if path.is_dir() and shards and not container.pictures:
        return join([open_container(path / name) for name in shards])
    return container
