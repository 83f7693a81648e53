"""Write docs/quality.md: Markdown tables on steps, guidance, samplers and the VAE, and plots as SVG files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.emoji.drawing import Settings
from latentdiff.files import atomic_path
from latentdiff.training.chart import Curve, as_file, chart

Cell = dict[str, Any]
COLORS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#d97706", "#0891b2")


@dataclass(frozen=True)
class Facts:
    """What the values depend on: pictures per cell (of the DDIM table and of the others), seed, settings, pairs."""

    few: int
    count: int
    seed: int
    usual: Settings
    pairs: int
    trained: int
    model_hash: str
    quick: bool
    judge: str


@dataclass(frozen=True)
class Results:
    """Cells by (eta, steps), scale, (scale, part guided), (sampler, calls); floors for `few` and `count` pictures."""

    steps: dict[tuple[float, int], Cell]
    guidance: dict[float, Cell]
    interval: dict[tuple[float, tuple[float, float]], Cell]
    samplers: dict[tuple[str, int], Cell]
    floors: tuple[Cell, Cell]
    vae: Cell
    facts: Facts


def write_page(results: Results, path: Path) -> None:
    """Write the page, and its plots under its own name."""
    facts, plots = results.facts, _plots(results)
    files = {name: path.with_name(f"{path.stem}-{name}.svg") for name in plots}
    for name, svg in plots.items():
        with atomic_path(files[name]) as partial:
            partial.write_text(svg, encoding="utf-8")
    sections = [
        "# The effect of steps, guidance, samplers and the VAE\n\nMeasurements of the bundled emoji model by "
        f"`examples.emoji.quality`; model {facts.model_hash}, seed {facts.seed}."
        f"{' This is a trial run with few pictures.' if facts.quick else ''}",
        _intro(facts),
        _steps(results, files["steps"].name),
        _guidance(results, files["guidance"].name),
        _samplers(results, files["samplers"].name),
        _vae(results.vae),
    ]
    with atomic_path(path) as partial:
        partial.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _intro(facts: Facts) -> str:
    return (
        f"The prompts, in English and Chinese, are for the {facts.pairs} held-out (concept, style) pairs that are set "
        "apart for choosing settings; the standard reports on other pairs. The Frechet distance (lower is better; with "
        f"EfficientNet-Lite0 features, so it is not FID) is to the {facts.trained} training pictures. `centroid`, "
        "and `clip` where a CLIP model judged, are the shares of pictures whose concept is ranked first of 100, and "
        "`style` is the share whose style is classified correctly, +- 1.96 standard errors over pairs; `alignment` is "
        "the mean CLIP cosine of picture and prompt. Each cell has a small n: differences within the errors are not "
        "significant. "
        f"{facts.judge}."
    )


def _steps(results: Results, plot: str) -> str:
    etas, lengths = sorted({eta for eta, _ in results.steps}), sorted({steps for _, steps in results.steps})
    head = ["eta", *(f"S={steps}" for steps in lengths)]
    tables = [
        f"{words}:\n\n" + table(head, [[f"{eta:g}", *(f"{results.steps[eta, s][key]:{form}}" for s in lengths)]
                                       for eta in etas])
        for key, words, form in (("frechet", "Frechet distance", ".1f"), ("centroid", "Concept by centroid", ".2f"))
    ]  # fmt: skip
    return (
        f"## DDIM: steps and eta\n\nn = {results.facts.few} pictures per cell, without guidance. "
        f"{_floor(results.floors[0], results.facts.few)}\n\n" + "\n\n".join(tables) + f"\n\n![DDIM]({plot})"
    )


def _guidance(results: Results, plot: str) -> str:
    facts = results.facts
    scales: dict[tuple[str, ...], Cell] = {(f"{scale:g}",): cell for scale, cell in results.guidance.items()}
    part: dict[tuple[str, ...], Cell] = {
        (f"{scale:g}", f"{low:g} to {high:g}"): cell for (scale, (low, high)), cell in results.interval.items()
    }
    return (
        f"## Guidance\n\nn = {facts.count}, {facts.usual.sampler}, {facts.usual.num_inference_steps} steps. "
        f"{_floor(results.floors[1], facts.count)}\n\n"
        + _cells(["scale"], scales)
        + f"\n\n![Guidance]({plot})\n\nGuidance in a part of the timesteps only, where 0 is clean and 1 is noise:\n\n"
        + _cells(["scale", "part"], part)
    )


def _samplers(results: Results, plot: str) -> str:
    facts = results.facts
    cells: dict[tuple[str, ...], Cell] = {(name, str(steps)): cell for (name, steps), cell in results.samplers.items()}
    return (
        f"## Samplers at equal cost\n\nn = {facts.count}, guidance {facts.usual.guidance_scale:g}; a call evaluates "
        "the prompt and the empty prompt. Samplers whose coefficients are equal for this model have equal cells.\n\n"
        + _cells(["sampler", "calls"], cells)
        + f"\n\n![Samplers]({plot})"
    )


def _vae(cell: Cell) -> str:
    values = cell["values"]
    rows = [[one["label"], f"{one['value']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}"] for one in values.values()]
    channels = " ".join(
        f"{mean:.2f}/{std:.2f}" for mean, std in zip(cell["channel_mean"], cell["channel_std"], strict=True)
    )
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in cell["notes"])
    latents = (
        f"Latents are multiplied by scaling_factor {cell['scaling_factor']}. Mean/standard deviation of each channel: "
        f"{channels}.{notes}"
    )
    return (
        f"## The VAE alone\n\nThe {cell['count']} held-out pictures compared with their reconstructions. This bounds "
        "the quality of generated pictures, which pass through the same decoder.\n\n"
        + table(["", "value", "95 % interval"], rows)
        + f"\n\n{latents}"
    )


def _measured(cells: Iterable[Cell]) -> list[str]:
    """The columns of a table of these cells; without a CLIP judge there is no `clip` and no `alignment`."""
    first = next(iter(cells))
    return ["frechet", *(name for name in ("clip", "centroid", "style", "alignment") if name in first)]


def _number(cell: Cell, name: str) -> str:
    if f"{name}_error" in cell:
        return f"{cell[name]:.2f} +- {cell[f'{name}_error']:.2f}"
    return f"{cell[name]:{'.1f' if name == 'frechet' else '.3f'}}"


def _cells(head: list[str], rows: Mapping[tuple[str, ...], Cell]) -> str:
    """A table of cells, each after the words that name it."""
    names = _measured(rows.values())
    titles = ["Frechet" if name == "frechet" else name for name in names]
    lines = [[*words, *(_number(cell, name) for name in names)] for words, cell in rows.items()]
    return table([*head, *titles], lines)


def _floor(floor: Cell, count: int) -> str:
    return (
        f"For reference, the distance of {count} training pictures to the others is {floor['frechet']:.1f}, "
        f"+- {floor['frechet_std']:.1f} depending on the selection."
    )


def _plots(results: Results) -> dict[str, str]:
    title = "Frechet distance"
    steps = _curves({(f"eta {eta:g}", float(s)): cell for (eta, s), cell in results.steps.items()})
    samplers = _curves({(name, float(s)): cell for (name, s), cell in results.samplers.items()})
    guidance = _curves({("", scale): cell for scale, cell in results.guidance.items()})
    return {
        "steps": as_file(chart(title, steps, "the steps", log_across=True)),
        "guidance": as_file(chart(title, guidance, "the guidance scale")),
        "samplers": as_file(chart(title, samplers, "the calls")),
    }


def _curves(cells: Mapping[tuple[str, float], Cell]) -> list[Curve]:
    """One curve per name; of several names with equal cells only the first."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, x), cell in cells.items():
        lines.setdefault(name, []).append((x, cell["frechet"]))
    distinct = {tuple(points): name for name, points in reversed(lines.items())}
    named = {name: list(points) for points, name in distinct.items()}
    return [Curve(name, named[name], COLORS[k % len(COLORS)]) for k, name in enumerate(n for n in lines if n in named)]
