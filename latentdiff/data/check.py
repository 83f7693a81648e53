"""Read everything once, before any model is loaded, and say what is wrong with it."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from latentdiff.data.containers import open_container
from latentdiff.data.images import decode
from latentdiff.data.layouts import Row, read_layout
from latentdiff.errors import InputError

ERRORS = ("unreadable", "too small", "no caption")


@dataclass(frozen=True)
class Finding:
    """One thing about one picture; `kind` is an error, or `duplicate` or `long caption`, which only warn."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What a folder holds, and what is wrong with it. `sizes`: pictures by (width, height), most frequent first."""

    path: str
    layout: str
    pictures: int
    captions: int
    sizes: list[tuple[str, int]]
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind in ERRORS]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "errors": len(self.errors)}

    def in_words(self) -> str:
        """The findings, a line each, and a summary."""
        lines = [f"{finding.kind}: {finding.where}: {finding.detail}" for finding in self.findings]
        sizes = ", ".join(f"{size} ({count})" for size, count in self.sizes[:8])
        more = f" and {len(self.sizes) - 8} more sizes" if len(self.sizes) > 8 else ""
        lines.append(f"{self.path}: {self.pictures} pictures with {self.captions} captions, from {self.layout}")
        lines.append(f"sizes: {sizes or 'none'}{more}")
        lines.append(f"{len(self.errors)} errors, {len(self.findings) - len(self.errors)} warnings")
        return "\n".join(lines)


def check(path: Path, resolution: int, lost_words: Callable[[str], str]) -> Report:
    """Decode every picture of a folder, zip or tar in parallel and read every caption.

    resolution: the shortest side that is not too small. lost_words(caption): what is over the token limit.
    Raises InputError when the container cannot be understood at all. Nothing is changed.
    """
    layout = read_layout(open_container(path))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(tqdm(pool.map(_look, layout.rows), total=len(layout.rows), desc="checking", disable=None))
    findings: list[Finding] = []
    first: dict[str, Row] = {}
    for row, (size, digest, problem) in zip(layout.rows, looks, strict=True):
        if problem:
            findings.append(Finding("unreadable", row.where, problem))
        elif size is not None and min(size) < resolution:
            findings.append(Finding("too small", row.where, f"{size[0]}x{size[1]} is under {resolution} pixels"))
        if not row.captions:
            findings.append(Finding("no caption", row.where, "nothing describes it; add a caption"))
        if not problem and first.setdefault(digest, row).name != row.name:
            findings.append(Finding("duplicate", row.where, f"the same file as {first[digest].where}"))
        findings += [
            Finding("long caption", row.where, f"over the token limit; lost: {lost!r}")
            for lost in map(lost_words, row.captions)
            if lost
        ]
    sizes = Counter(f"{size[0]}x{size[1]}" for size, _, _ in looks if size is not None)
    captions = sum(len(row.captions) for row in layout.rows)
    return Report(str(path), layout.kind, len(layout.rows), captions, sizes.most_common(), findings)


def _look(row: Row) -> tuple[tuple[int, int] | None, str, str | None]:
    """Size, hash of the bytes, and what is wrong."""
    try:
        data = row.read()
        image = decode(data, row.name)
    except (InputError, OSError) as error:
        return None, "", str(error)
    return image.size, hashlib.sha256(data).hexdigest(), None
