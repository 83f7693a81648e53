"""A short hash of everything in a model that affects its images: weights, configs, schedule and vocabulary."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.components import open_model
from latentdiff.checkpoints.model_source import ModelSource
from latentdiff.files import write_atomically
from latentdiff.runtime.native import cache_folder

CACHE = "hashes.json"
KEPT = 500  # files in the cache
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")
DIGITS = 16


def hash_model(model: ModelSource | Path, *additions: Path) -> str:
    """16 hexadecimal digits that identify a model and additional files (LoRAs, embeddings).

    Unused files, such as `safety_checker/`, and file names have no effect. The digest of each file is stored in the
    user's cache with its path, size and modification time.
    """
    source = open_model(model) if isinstance(model, Path) else model
    digest = hashlib.sha256()
    for name, files in source.networks().items():
        _add(digest, name, files.config.model_dump(mode="json"))
        paths = {location.file for location in files.find().values()}
        _add(digest, "files", [file_hash(path) for path in sorted(paths)])
    _add(digest, "schedule", source.schedule.model_dump(mode="json"))
    _add(digest, "zero_empty_prompt", source.zero_empty_prompt)
    if source.path.is_dir():
        vocabularies = [path for path in sorted(source.path.glob("tokenizer*/*")) if path.name in TOKENIZER_FILES]
        _add(digest, "tokenizers", [file_hash(path) for path in vocabularies])
    _add(digest, "additions", [file_hash(path) for path in additions])
    return digest.hexdigest()[:DIGITS]


def first_hash(folder: Path, *additions: Path) -> str:
    """The hash in the first recipes, over the names and bytes of all safetensors files."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in additions))
    for path in sorted(folder.glob("*/*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(bytes.fromhex(file_hash(path)))
    return digest.hexdigest()[:DIGITS]


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits, from the cache if the file has not changed since."""
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    cache = _read_cache()
    if (known := cache.pop(key, None)) is None:
        with path.open("rb") as file:
            known = hashlib.file_digest(file, "sha256").hexdigest()
        _write_cache({**cache, key: known})
    return known


def _add(digest: Any, name: str, value: Any) -> None:
    digest.update(json.dumps([name, value], sort_keys=True).encode())


def _read_cache() -> dict[str, str]:
    try:
        found = json.loads((cache_folder() / CACHE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):  # RuntimeError is raised without a home folder
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str) and len(value) == 64}


def _write_cache(hashes: dict[str, str]) -> None:
    """Write the newest entries. If this fails, the files are hashed again next time."""
    with suppress(OSError, RuntimeError):
        write_atomically(cache_folder() / CACHE, json.dumps(dict(list(hashes.items())[-KEPT:])))
