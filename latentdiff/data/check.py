"""Read everything once, before any model is loaded, and say what is wrong with it."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from latentdiff.config.train import CLASS_NAME
from latentdiff.data.buckets import Fitting, Size
from latentdiff.data.layouts import Row, read_layout
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from latentdiff.images.decoding import decode

ERRORS = ("unreadable", "too small", "too narrow", "no caption")
EXAMPLES = 4


@dataclass(frozen=True)
class Finding:
    """One thing about the picture `name`; `kind` is an error, or `duplicate` or `long caption`, which only warn."""

    kind: str
    where: str
    name: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What a folder holds, and what is wrong. `sizes` and the `buckets` to come: how many pictures, most first.

    `examples` are a few captions.
    """

    path: str
    layout: str
    pictures: int
    captions: int
    sizes: list[tuple[str, int]]
    buckets: list[tuple[str, int]]
    examples: list[str]
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
        lines.append(f"trained at: {', '.join(f'{size} ({count})' for size, count in self.buckets) or 'none'}")
        lines.append(f"{len(self.errors)} errors, {len(self.findings) - len(self.errors)} warnings")
        return "\n".join(lines)


def check(
    source: str | Path, fitting: Fitting, lost_words: Callable[[str], str], caption_template: str = CLASS_NAME
) -> Report:
    """Decode every picture of a source, as `DataConfig.train` names it, in parallel and read every caption.

    fitting: what they will be brought to. lost_words(caption): what is over the token limit.
    Raises InputError when the container cannot be understood at all. Nothing is changed.
    """
    layout = read_layout(open_source(source), caption_template)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(tqdm(pool.map(_look, layout.rows), total=len(layout.rows), desc="checking", disable=None))
    findings: list[Finding] = []
    first: dict[str, Row] = {}
    for row, (size, digest, problem) in zip(layout.rows, looks, strict=True):
        if problem:
            findings.append(Finding("unreadable", row.where, row.name, problem))
        elif size is not None and (kind_and_detail := fitting.problem(size)):
            kind, detail = kind_and_detail
            findings.append(Finding(kind, row.where, row.name, detail))
        if not row.captions:
            findings.append(Finding("no caption", row.where, row.name, "nothing describes it; add a caption"))
        if not problem and first.setdefault(digest, row).name != row.name:
            findings.append(Finding("duplicate", row.where, row.name, f"the same file as {first[digest].where}"))
        findings += [
            Finding("long caption", row.where, row.name, f"over the token limit; lost: {lost!r}")
            for lost in map(lost_words, row.captions)
            if lost
        ]
    good = [size for size, _, _ in looks if size is not None]
    captions = sum(len(row.captions) for row in layout.rows)
    sizes, buckets = _counts(good), _counts([fitting.bucket(size) for size in good])
    examples = list(dict.fromkeys(row.captions[0] for row in layout.rows if row.captions))[:EXAMPLES]
    return Report(str(source), layout.kind, len(layout.rows), captions, sizes, buckets, examples, findings)


def _counts(sizes: list[Size]) -> list[tuple[str, int]]:
    return Counter(f"{width}x{height}" for width, height in sizes).most_common()


def _look(row: Row) -> tuple[tuple[int, int] | None, str, str | None]:
    """Size, hash of the bytes, and what is wrong."""
    try:
        data = row.read()
        image = decode(data, row.where)
    except (InputError, OSError) as error:
        return None, "", str(error).removeprefix(f"{row.where}: ")
    return image.size, hashlib.sha256(data).hexdigest(), None


def unusable(report: Report, captioned: bool, known: Collection[str], skip_bad: bool) -> tuple[str, ...]:
    """Names of the pictures to leave out: those `known` to be bad and those with errors.

    captioned: pictures without a caption will have one, or need none.
    Raises InputError when there are new ones and `skip_bad` is not set, and when none is left.
    """
    errors = {e.name: e for e in report.errors if not (captioned and e.kind == "no caption")}
    new = [error for name, error in errors.items() if name not in known]
    if new and not skip_bad:
        raise InputError(
            f"{len(new)} of {report.pictures} pictures cannot be used, first {new[0].where}: {new[0].kind}; "
            f"see latentdiff data check {report.path}, mend them or pass --skip-bad"
        )
    bad = tuple(sorted({*errors, *known}))
    if len(bad) == report.pictures:
        raise InputError(f"no picture of {report.path} can be used; see latentdiff data check {report.path}")
    return bad
