"""Check a dataset before any weights are loaded: decode every picture and measure every caption."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from latentdiff.config.data import CLASS_NAME, DataConfig
from latentdiff.config.train import BaseOptions
from latentdiff.data.buckets import Fitting, Size, enlargement
from latentdiff.data.captions import prefixed
from latentdiff.data.layouts import OF_CLASSES, DataRow, Layout, read_layout
from latentdiff.data.parallel import FILES, PIXELS, threaded_map
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from latentdiff.images.decoding import decode, memory_needed

ERRORS = ("unreadable", "too small", "too narrow", "no caption")
PROMPTS = 4
EXAMPLES = 5
LINE = 80
SHOWN_SIZES = 8
SMALL_BUCKET = 8


@dataclass(frozen=True)
class Finding:
    """An error or a warning about the file `name`; an error if `kind` is one of ERRORS."""

    kind: str
    where: str
    name: str
    detail: str


@dataclass(frozen=True)
class DataCheck:
    """Contents of a dataset, and the problems found in it.

    sizes, buckets: number of pictures per original size and per training size, most frequent first. examples: a few
    captions. enlarged: number of pictures that are enlarged, by up to `largest_enlargement`.
    """

    path: str
    layout: str
    pictures: int
    captions: int
    sizes: list[tuple[str, int]]
    buckets: list[tuple[str, int]]
    examples: list[str]
    findings: list[Finding]
    enlarged: int = 0
    largest_enlargement: float = 1.0

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind in ERRORS]

    @property
    def warnings(self) -> str:
        """The number of warnings of each kind as text; empty if there are none."""
        kinds = Counter(finding.kind for finding in self.findings if finding.kind not in ERRORS)
        return ", ".join(f"{kind} ({count})" for kind, count in kinds.items())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "errors": len(self.errors)}

    def summary(self) -> str:
        """Up to five findings of each kind, each on one line, followed by a summary."""
        lines = list(self._examples())
        lines.append(f"{self.path}: {self.pictures} pictures with {self.captions} captions, from {self.layout}")
        lines.append(f"sizes: {_list(self.sizes)}")
        lines.append(f"trained at: {_list(self.buckets)}")
        if self.enlarged:
            lines.append(f"enlarged pictures: {self.enlarged}, by up to {self.largest_enlargement:.2f}")
        lines.append(f"{len(self.errors)} errors, {len(self.findings) - len(self.errors)} warnings")
        return "\n".join(lines)

    def _examples(self) -> Iterator[str]:
        for kind in dict.fromkeys(finding.kind for finding in self.findings):
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            yield from (f"{kind}: {finding.where}: {_cut(finding.detail)}" for finding in of_kind[:EXAMPLES])
            if len(of_kind) > EXAMPLES:
                yield f"{kind}: and {len(of_kind) - EXAMPLES} more; --json lists all"


class _Decoded(NamedTuple):
    """The size and hash of a picture, or the problem with it."""

    size: Size | None
    digest: bytes
    problem: str | None


def check(
    source: str | Path,
    fitting: Fitting,
    lost_words: Callable[[str], str],
    caption_template: str = CLASS_NAME,
    prefix: str = "",
) -> DataCheck:
    """Decode every picture of a source in parallel, and measure every caption. Nothing is changed.

    source: as in `DataConfig.train`. fitting: the training sizes. lost_words(caption): the words beyond the token
    limit. prefix: precedes each caption. Raises InputError if the source cannot be read, and for a template without an
    effect.
    """
    layout = read_layout(open_source(source), caption_template)
    if caption_template != CLASS_NAME and layout.kind not in OF_CLASSES:
        raise InputError(f"caption_template={caption_template!r} has no effect: it is for names of classes, and the "
                         f"captions of {source} come from {layout.kind}; omit it")  # fmt: skip
    decoded = list(tqdm(threaded_map(_decode, layout.rows), total=len(layout.rows), desc="checking", disable=None))
    findings = [*_findings(layout, decoded, fitting, lost_words, prefix), *_ignored(layout)]
    good = [one.size for one in decoded if one.size is not None]
    buckets = [fitting.bucket(size) for size in good]
    findings += _small_buckets(str(source), buckets)
    factors = [factor for pair in zip(good, buckets, strict=True) if (factor := enlargement(*pair)) > 1]
    return DataCheck(
        path=str(source),
        layout=layout.kind,
        pictures=len(layout.rows),
        captions=sum(len(row.captions) for row in layout.rows),
        sizes=_counts(good),
        buckets=_counts(buckets),
        examples=list(dict.fromkeys(row.captions[0] for row in layout.rows if row.captions))[:PROMPTS],
        findings=findings,
        enlarged=len(factors),
        largest_enlargement=max(factors, default=1.0),
    )


def _decode(row: DataRow) -> _Decoded:
    try:
        with FILES.reserve(row.container.size(row.name)):
            data = row.read()
            with PIXELS.reserve(memory_needed(data, row.where)):
                size = decode(data, row.where).size
            return _Decoded(size, hashlib.sha256(data).digest(), None)
    except (InputError, OSError) as error:
        return _Decoded(None, b"", str(error).removeprefix(f"{row.where}: "))


def _findings(
    layout: Layout, decoded: list[_Decoded], fitting: Fitting, lost_words: Callable[[str], str], prefix: str
) -> Iterator[Finding]:
    """Errors and warnings about each picture and its captions."""
    first: dict[bytes, DataRow] = {}
    for row, one in zip(layout.rows, decoded, strict=True):
        if one.problem:
            yield Finding("unreadable", row.where, row.name, one.problem)
        elif one.size is not None and (kind_and_detail := fitting.problem(one.size)):
            yield Finding(kind_and_detail[0], row.where, row.name, kind_and_detail[1])
        if not row.captions and not prefix:
            yield Finding("no caption", row.where, row.name, "nothing describes it; add a caption")
        if not one.problem and first.setdefault(one.digest, row).name != row.name:
            yield Finding("duplicate", row.where, row.name, f"the same file as {first[one.digest].name}; remove one")
        for caption in row.captions or [""]:
            if lost := lost_words(prefixed(caption, prefix)):
                yield Finding("long caption", row.where, row.name, f"exceeds the token limit; lost: {lost!r}")


def _ignored(layout: Layout) -> Iterator[Finding]:
    for name, reason in layout.ignored:
        yield Finding("ignored file", layout.rows[0].container.where(name), name, reason)


def _small_buckets(source: str, buckets: list[Size]) -> Iterator[Finding]:
    counts = Counter(buckets)
    small = [bucket for bucket, count in counts.items() if count < SMALL_BUCKET]
    if small and len(counts) > 1:
        detail = f"{len(small)} of {len(counts)} have fewer than {SMALL_BUCKET} pictures; larger batches will crop more"
        yield Finding("small buckets", source, "", detail)


def _counts(sizes: list[Size]) -> list[tuple[str, int]]:
    return Counter(f"{width}x{height}" for width, height in sizes).most_common()


def _list(sizes: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:SHOWN_SIZES])
    more = f" and {len(sizes) - SHOWN_SIZES} more" if len(sizes) > SHOWN_SIZES else ""
    return f"{shown or 'none'}{more}"


def _cut(detail: str) -> str:
    return detail if len(detail) <= LINE else f"{detail[: LINE - 1]}…"


def check_command(data: DataConfig, model: str | None = None, opening: BaseOptions | None = None) -> str:
    """The `latentdiff data check` command that prints the same result for the pictures of a config.

    opening: how the model is opened.
    """
    options: dict[str, Any] = {"model": model, "trigger": data.prefix or None, "resolution": data.resolution}
    for name in ("caption_template", "allow_upscale"):
        if (value := getattr(data, name)) != DataConfig.model_fields[name].default:
            options[name] = value
    if opening is not None:
        options |= {name: getattr(opening, name) or None for name in ("variant", "prediction_type", "allow_pickle")}
    words = ["latentdiff", "data", "check", str(data.train)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def unusable(
    checked: DataCheck, captioned: bool, known: Collection[str], skip_bad: bool, command: str
) -> tuple[str, ...]:
    """Names of the pictures to skip: those in `known` and those with errors.

    captioned: a missing caption is not an error. command: prints the result of the check, for messages.
    Raises InputError if there are new errors and `skip_bad` is not set, or if no picture remains.
    """
    errors = {e.name: e for e in checked.errors if not (captioned and e.kind == "no caption")}
    new = [error for name, error in errors.items() if name not in known]
    if new and not skip_bad:
        raise InputError(
            f"{len(new)} of {checked.pictures} pictures cannot be used, first {new[0].where}: {new[0].kind}; "
            f"see {command}, repair them or pass --skip-bad"
        )
    bad = tuple(sorted({*errors, *known}))
    if len(bad) == checked.pictures:
        raise InputError(f"no picture of {checked.path} can be used; see {command}")
    return bad
