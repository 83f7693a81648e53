"""The report of a run: `report.html`, a single self-contained page."""

import json
import math
import platform
from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import latentdiff
from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent, write_atomically
from latentdiff.training.chart import Curve, Points, chart, smooth
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.sample_table import STYLE as SAMPLE_STYLE
from latentdiff.training.sample_table import captioned_strip, sample_table

OF_THE_LOG = {"step", "time", "pictures_per_step"}  # the other numbers in a line of the log are metrics
BLUE, ORANGE, GREEN = "#3b82f6", "#ea7317", "#16a34a"  # visible on white and on black
SHOWN_ITEMS = 8
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1rem }
h1, h2 { font-weight: 600; line-height: 1.2; overflow-wrap: anywhere }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)) }
svg { display: block; width: 100%; height: auto }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #8884; overflow-wrap: anywhere; padding: .2rem 1rem .2rem 0; text-align: left }
th { font-weight: 400; opacity: .7; vertical-align: top; white-space: nowrap }
pre { overflow-wrap: anywhere; white-space: pre-wrap }
"""

Row = dict[str, float]


def write_report(run: RunFolder) -> Path:
    """Write `report.html` into a run's folder, and return its path.

    Raises InputError if `metrics.jsonl` is missing or empty; other missing files are omitted.
    """
    rows = _read_rows(run.metrics)
    check_writable_parent(run.report)
    config = _read_text(run.config)
    series = _series(_with_rates(rows))
    title = escape(run.path.resolve().name)
    body = "".join(
        [
            f"<h1>{title}</h1>",
            _table(_totals(rows, series)),
            _section("Curves", _charts(series)),
            _section("Samples", sample_table(run.samples)),
            _section("Pictures of the folder", captioned_strip(run.data_pictures)),
            _section("Data", _data(_read_text(run.data_check))),
            _section("Config", config and f"<pre>{escape(config)}</pre>"),
        ]
    )
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{STYLE}{SAMPLE_STYLE}</style>"
    )
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    write_atomically(run.report, page.encode(errors="replace").decode())  # a name or a caption may have lone surrogates
    return run.report


def _read_rows(path: Path) -> list[Row]:
    """The finite numbers in each line, in order; invalid lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); pass the folder of a run, which is run.output in its config"
        ) from error
    rows = [row for row in map(_row, lines) if "step" in row]
    if not rows:
        raise InputError(f"{path} contains no values yet; wait for run.log_every steps")
    return rows


def _row(line: str) -> Row:
    values = _parse(line)
    return {k: v for k, v in values.items() if type(v) in (int, float) and math.isfinite(v)}


def _parse(text: str) -> dict[str, Any]:
    """Parse a JSON object; anything else gives an empty one."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _intervals(rows: list[Row]) -> dict[int, tuple[float, float]]:
    """Steps and seconds since the previous row, by index, for rows of the same session.

    A session ends where the step decreases, and at a pause of over ten minutes that is also over 20 times the median.
    """
    pairs = pairwise((k, row) for k, row in enumerate(rows) if "time" in row)
    waits = {k: (b["step"] - a["step"], b["time"] - a["time"]) for (_, a), (k, b) in pairs}
    waits = {k: (steps, seconds) for k, (steps, seconds) in waits.items() if steps >= 0 and seconds > 0}
    longest = max(600.0, 20 * median(seconds for _, seconds in waits.values())) if waits else 0.0
    return {k: (steps, seconds) for k, (steps, seconds) in waits.items() if seconds <= longest}


def _with_rates(rows: list[Row]) -> list[Row]:
    """The rows with the training speed since the previous row, excluding the time of evaluations.

    Pictures are those of all processes; logs of earlier versions do not state them.
    """
    pictures = [row.get("pictures_per_step", math.nan) for row in rows]
    known = all(map(math.isfinite, pictures))
    intervals = _intervals(rows).items()
    steps = {k: count / seconds for k, (count, seconds) in intervals if count > 0}
    rates = {
        k: {"pictures per second": pictures[k] * rate} if known else {"steps per second": rate}
        for k, rate in steps.items()
    }
    return [row | rates.get(k, {}) for k, row in enumerate(rows)]


def _series(rows: list[Row]) -> dict[str, Points]:
    """(step, value) by name; values of a run that was resumed from an earlier step replace later ones."""
    kept: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row["step"]
        for values in kept.values():
            while values and next(reversed(values)) > step:
                values.popitem()
        for name in row.keys() - OF_THE_LOG:
            kept.setdefault(name, {})[step] = row[name]
    return {name: list(values.items()) for name, values in sorted(kept.items()) if values}


def _totals(rows: list[Row], series: dict[str, Points]) -> dict[str, str]:
    hours = sum(seconds for _, seconds in _intervals(rows).values()) / 3600
    totals = {"steps": f"{rows[-1]['step']:g}", "hours": f"{hours:.2f}"}
    if points := series.get("loss"):
        totals["training loss"] = f"{smooth(points)[-1][1]:.4g}, smoothed"
    if points := series.get("held_out_loss"):
        step, best = min(points, key=lambda point: point[1])
        totals["held-out loss"] = f"{points[-1][1]:.4g}, best {best:.4g} at step {step:g}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    made_with = f"latentdiff {latentdiff.__version__}, Python {platform.python_version()}, {packages}"
    return totals | {"report made with": made_with}


def _charts(series: dict[str, Points]) -> str:
    """The losses in one chart, then the learning rate, the speed and all other figures."""
    losses = []
    if points := series.get("loss"):
        smoothed = Curve("training, smoothed", smooth(points), BLUE)
        losses = [Curve("training", points, BLUE, faint=True), smoothed]
    if points := series.get("held_out_loss"):
        losses.append(Curve("held-out", points, ORANGE))
    charts = [chart("loss", losses)] if losses else []
    others = series.keys() - {"loss", "held_out_loss"}
    for name in sorted(others, key=lambda name: (name != "lr", "per second" not in name, name)):
        title = "learning rate" if name == "lr" else name.replace("_", " ")
        charts.append(chart(title, [Curve(title, series[name], GREEN)]))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _data(text: str) -> str:
    return _table({name: _words(value) for name, value in _parse(text).items()})


def _words(value: Any) -> str:
    """A value as lines of text: the first items of a list, or the entries of a mapping."""
    if not isinstance(value, (list, dict)):
        return str(value)
    items = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [_item(item) for item in value]
    more = [f"and {len(items) - SHOWN_ITEMS} more"] if len(items) > SHOWN_ITEMS else []
    return "\n".join([*items[:SHOWN_ITEMS], *more]) or "none"


def _item(item: Any) -> str:
    if isinstance(item, dict):  # a finding, whose location ends in its name
        item = [value for key, value in item.items() if key != "name"]
    values: Iterable[Any] = item if isinstance(item, list) else [item]
    return ": ".join(map(str, values))


def _table(facts: dict[str, str]) -> str:
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(v).replace(chr(10), '<br>')}</td></tr>" for k, v in facts.items())
    return f"<table>{''.join(rows)}</table>" if facts else ""


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""
