"""Download the npm packages with pictures and names, and read them in memory."""

import gzip
import io
import json
import re
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError

NAMES = "emojibase-data@17.0.0"
NAMES_CREDIT = (
    "names and keywords: emojibase-data, Copyright (c) 2017-2019 Miles Johnson, MIT License; "
    "from Unicode CLDR, Unicode License"
)
NOT_MICROSOFT = Path(__file__).with_name("fluent3d_not_in_ms_listing.json")


@dataclass(frozen=True)
class Source:
    """One emoji set: its style tag, its package and its attribution in NOTICE."""

    style: str
    package: str
    credit: str


MICROSOFT = "Fluent Emoji, Copyright (c) Microsoft Corporation, MIT License"
GOOGLE = "Noto Emoji, Copyright Google Inc., Apache License 2.0"
CC_BY = "graphics CC BY 4.0, https://creativecommons.org/licenses/by/4.0/; rasterised"
SOURCES = (
    Source("fluent 3d", "@lobehub/fluent-emoji-3d@1.1.0", f"{MICROSOFT}; pictures not by Microsoft omitted"),
    Source("fluent color", "@iconify-json/fluent-emoji@1.2.7", MICROSOFT),
    Source("fluent flat", "@iconify-json/fluent-emoji-flat@1.2.6", MICROSOFT),
    Source("noto", "@iconify-json/noto@1.2.9", GOOGLE),
    Source("blob", "@iconify-json/noto-v1@1.2.5", GOOGLE),
    Source(
        "twemoji", "@iconify-json/twemoji@1.2.5", f"Twemoji, Copyright Twitter, Inc and other contributors, {CC_BY}"
    ),
    Source(
        "emojitwo", "@iconify-json/emojione@1.2.3", f"EmojiTwo / EmojiOne 2, Copyright EmojiTwo contributors, {CC_BY}"
    ),
)


def fetch(package: str, cache: Path) -> Path:
    """The package's tarball in `cache`; `npm pack` downloads it if it is missing."""
    name, version = package.rsplit("@", 1)
    tarball = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if tarball.is_file():
        return tarball
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache} cannot store the packages ({error.strerror}); use another --cache") from None
    try:
        subprocess.run(
            ["npm", "pack", "--loglevel=error", package], cwd=cache, check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise InputError(
            f"npm is not installed and {tarball} does not exist; install Node.js, or put the tarball there"
        ) from None
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"npm pack {package} failed: {_reason(error.stderr)}; check the network and run again"
        ) from None
    return tarball


def _reason(stderr: str) -> str:
    """The first line of npm's output that is not only an error code."""
    lines = [re.sub(r"^npm (error|ERR!) ?", "", line).strip() for line in stderr.splitlines()]
    return next((line.rstrip(".") for line in lines if line and not line.startswith("code ")), "no reason given")


def read_members(tarball: Path, wanted: str) -> dict[str, bytes]:
    """The members whose path matches the pattern `wanted`, by path; nothing is unpacked to disk.

    Raises InputError if the tarball is damaged or has no such member.
    """
    try:
        # tarfile stops before gzip's checksum; decompress reads it
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(tarball.read_bytes()))) as archive:
            files = [m for m in archive if m.isfile() and re.fullmatch(wanted, m.name)]
            found = {m.name: archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{tarball} is damaged ({error}); delete it and run again") from error
    if not found:
        raise InputError(f"{tarball} has no member {wanted}: it is another package; delete it and run again")
    return found


def code_of(text: str) -> str:
    """Normalise a code point sequence: lower case, without the variation selector."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def pictures(packages: dict[Source, Path]) -> dict[Source, dict[str, bytes]]:
    """Code point sequence to SVG or WebP bytes, of each set; a set without codes uses those of other sets."""
    drawn = [source for source in packages if source.style != "fluent 3d"]
    files = {source: read_members(packages[source], r"package/(icons|chars)\.json") for source in drawn}
    chars = {source: json.loads(files[source].get("package/chars.json", b"{}")) for source in drawn}
    names = {name: code_of(code) for listed in chars.values() for code, name in listed.items()}
    found = {}
    for source, path in packages.items():
        if source not in files:
            found[source] = _webp(path)
        else:
            own = {name: code_of(code) for code, name in chars[source].items()}
            found[source] = drawings(json.loads(files[source]["package/icons.json"]), own or names)
    return found


def _webp(tarball: Path) -> dict[str, bytes]:
    foreign = {code_of(code) for code in json.loads(NOT_MICROSOFT.read_text())}
    images = {code_of(Path(n).stem): data for n, data in read_members(tarball, r"package/assets/.*\.webp").items()}
    return {code: data for code, data in images.items() if code not in foreign}


def drawings(icons: dict[str, Any], names: dict[str, str]) -> dict[str, bytes]:
    parents = {alias: entry["parent"] for alias, entry in icons.get("aliases", {}).items() if len(entry) == 1}
    svgs = {code: _svg(icons, parents.get(name, name)) for name, code in names.items()}
    return {code: svg for code, svg in svgs.items() if svg is not None}


def _svg(icons: dict[str, Any], name: str) -> bytes | None:
    """The icon as an SVG file; None if it is missing or hidden in its set."""
    icon = icons["icons"].get(name)
    if icon is None or icon.get("hidden"):
        return None
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'.encode()
