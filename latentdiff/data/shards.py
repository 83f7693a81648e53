"""Shards: tar files given by a brace pattern of paths or URLs; URLs are downloaded once."""

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from latentdiff.data.archives import Container, join, open_container
from latentdiff.errors import InputError
from latentdiff.files import atomic_path
from latentdiff.runtime.native import cache_folder

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
SCHEMES = ("http", "https")
MAX_SHARDS = 10_000
MAX_SHARD = 8 * 1024**3
BLOCK = 1024 * 1024
TIMEOUT = 60.0


def open_shards(pattern: str) -> Container:
    """All shards of a pattern as one container. Raises InputError for an invalid pattern and for a damaged shard."""
    sources = expand(pattern)
    if "://" not in pattern:
        return join([open_container(Path(source)) for source in sources])
    for source in sources:
        _check_address(source)
    return join([_open_address(source) for source in tqdm(sources, desc="fetching shards", disable=None)])


def expand(pattern: str) -> list[str]:
    """Expand braces as a shell does: `{008..012}` is a range, `{a,b}` a list. Raises InputError."""
    pieces = BRACES.split(pattern)
    if any(brace in piece for piece in pieces[::2] for brace in "{}"):
        raise InputError(f"{pattern}: unpaired or nested braces; write {{000..012}} or {{a,b}}")
    choices = [_choices(piece, pattern) if k % 2 else [piece] for k, piece in enumerate(pieces)]
    count = math.prod(len(choice) for choice in choices)
    if count > MAX_SHARDS:
        raise InputError(f"{pattern} gives {count} shards, more than {MAX_SHARDS}; use fewer, larger ones")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> Sequence[str]:
    if (match := RANGE.fullmatch(inside)) is None:
        if inside and all(inside.split(",")) and ".." not in inside:
            return inside.split(",")
        raise InputError(f"{pattern}: {{{inside}}} is neither a range nor a list; write {{000..012}} or {{a,b}}")
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MAX_SHARDS:
        raise InputError(
            f"{pattern}: {{{inside}}} must count up and give at most {MAX_SHARDS} shards; write {{000..012}}"
        )
    width = len(match[1]) if match[1].startswith("0") else 0
    return [f"{k:0{width}}" for k in range(first, last + 1)]


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url} is not a URL ({error}); write https://host/000.tar") from error
    if parts.scheme.lower() not in SCHEMES or not parts.hostname:
        raise InputError(f"{url}: only http:// and https:// URLs are opened; download it and pass the file")
    if not parts.path.endswith(".tar"):
        raise InputError(f"{url} does not end in .tar; pass shards, or download it and pass the file")


def _open_address(url: str) -> Container:
    """The shard at `url`; it is downloaded to the cache folder and validated unless it is there."""
    name = url.partition("?")[0]
    path = cache_folder() / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"
    if path.exists():
        return open_container(path, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            _download(url, partial)
            open_container(partial, name)
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} was not downloaded ({reason}); check the URL and try again") from error
    return open_container(path, name)


def _download(url: str, path: Path) -> None:
    """Download `url` to `path`. Raises OSError, also for more than MAX_SHARD bytes and for an incomplete download."""
    request = Request(url, headers={"User-Agent": "latentdiff"})
    with build_opener(_Redirects).open(request, timeout=TIMEOUT) as response, path.open("wb") as file:
        while block := response.read(BLOCK):
            file.write(block)
            if file.tell() > MAX_SHARD:
                raise OSError(f"it has more than {MAX_SHARD} bytes, use smaller shards")
        if response.length:
            raise OSError(f"its last {response.length} bytes are missing")


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http:// and https:// only."""

    max_redirections = 5

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise OSError(f"it redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
