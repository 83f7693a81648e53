"""Line charts as SVG, inline for light and dark pages or as files, without scripts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import accumulate

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 30, 24
MOST_POINTS = 1000
FILE = 'xmlns="http://www.w3.org/2000/svg" color="#222" font-family="sans-serif"'
PAPER = '<rect width="100%" height="100%" fill="#fff"/>'
MARKED = 40  # curves with at most this many points have markers
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One line of a chart: at least one point, sorted by x. A faint curve is drawn behind its smoothed version."""

    name: str
    points: Points
    color: str
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels between two ends of the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """A few round values within the range of the axis."""
        if self.log and self.high / self.low > 5:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 100 else (1,)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            unit = _round_step((self.high - self.low) / 5)
            values = [k * unit for k in range(math.ceil(self.low / unit), math.floor(self.high / unit) + 1)]
        return [value for value in values if self.low <= value <= self.high]


def smooth(points: Points, share: float = 0.05) -> Points:
    """The mean over a window of `share` of the points, centred on each and narrower at the ends."""
    half = max(1, round(len(points) * share / 2))
    sums = [0.0, *accumulate(y for _, y in points)]
    windows = [(max(0, k - half), min(len(points), k + half + 1)) for k in range(len(points))]
    means = [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def chart(title: str, curves: list[Curve], over: str | None = "the step", log_across: bool = False) -> str:
    """An `<svg>` of the curves; the y axis is logarithmic if values span a factor of ten or more.

    over: name of x, for screen readers; None if the title states it. log_across: use a logarithmic x axis; all x must
    be positive.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    across = Axis(*((min(xs), max(xs)) if log_across else _ends(xs, 0)), LEFT, WIDTH - RIGHT, log_across)
    log = min(ys) > 0 and max(ys) >= 10 * min(ys)
    up = Axis(*((min(ys), max(ys)) if log else _ends(ys, 0.05)), HEIGHT - BOTTOM, TOP, log)
    parts = [_legend(title, curves), *_grid(across, up), *(_path(curve, across, up) for curve in curves)]
    name = escape(title if over is None else f"{title} over {over}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def as_file(svg: str) -> str:
    """The chart as the text of an SVG file, with a white background, so that its black axes show on dark pages too."""
    return svg.replace("<svg ", f"<svg {FILE} ", 1).replace(">", f">{PAPER}", 1)


def _round_step(step: float) -> float:
    """The next larger value of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)


def _ends(values: list[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    around = margin * (high - low) if low < high else 0.5 * (abs(low) or 1.0)
    return low - around, high + around


def _text(x: float, y: float, anchor: str, content: str, color: str = "currentColor") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13" fill="{color}">{escape(content)}</text>'
    )


def _legend(title: str, curves: list[Curve]) -> str:
    """The title and, for several curves, their names."""
    x, parts = WIDTH - RIGHT, [_text(6, 16, "start", title)]
    for curve in reversed(curves if len(curves) > 1 else []):
        parts.append(_text(x, 16, "end", curve.name, curve.color))
        x -= 7 * len(curve.name) + 14
    return "".join(parts)


def _grid(across: Axis, up: Axis) -> list[str]:
    lines = [
        f'<path d="M{LEFT} {up.place(y):.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity="0.15"/>'
        + _text(LEFT - 6, up.place(y) + 4, "end", f"{y:g}")
        for y in up.ticks()
    ]
    return [*lines, *(_text(across.place(x), HEIGHT - 6, "middle", f"{x:g}") for x in across.ticks())]


def _path(curve: Curve, across: Axis, up: Axis) -> str:
    """The line, with fewer points where they would overlap, and with markers if there are few."""
    thin = curve.points[:: math.ceil(len(curve.points) / MOST_POINTS)]
    places = [(f"{across.place(x):.1f}", f"{up.place(y):.1f}") for x, y in thin]
    opacity = 0.3 if curve.faint else 1
    style = f'fill="none" stroke="{curve.color}" stroke-width="1.5" stroke-opacity="{opacity}"'
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2" fill="{curve.color}"/>' for x, y in places)
    shown = dots if len(places) <= MARKED and not curve.faint else ""
    return f'<path d="M{"L".join(f"{x} {y}" for x, y in places)}" {style}/>{shown}'
