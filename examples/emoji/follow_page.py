"""Write the results of `examples.emoji.follow` as Markdown tables."""

from typing import Any

from examples.emoji.follow_requests import COUNTS, LANGUAGES

REACH = {
    "single object": 0.75, "two objects": 0.5, "counting": 0.6, "colours": 0.7, "position": 0.45,
    "colour attribution": 0.35, "mean": 0.56,
}  # fmt: skip


def write_markdown(result: dict[str, Any]) -> str:
    """Write the page for one result."""
    classifier, values = result["classifier"], result["values"]
    others = [name for name in values if name != "generated"]
    generated = [*LANGUAGES, "both", "reach"] if "generated" in values else []
    rows = [_row(task, result, others) for task in (*COUNTS, "mean")]
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    groups = {name: found for name, found in result["groups"].items() if name in ("generated", "real")}
    names = list(groups["real"])
    return "\n".join(
        [
            f"Model {result['model_hash']}, {result['part']} prompts, {result['pictures']} pictures of each in each "
            f"language, seed {result['seed']}; {settings}.",
            f"The classifier knows {classifier['objects']} objects and names {classifier['accuracy']:.2f} of views of "
            f"{classifier['held_out_drawings']} real pictures right that it was not taught. "
            "Intervals (95 %) are over prompts.",
            "",
            *_table(["task", "prompts", *generated, *others], rows),
            "",
            "Single objects by group:",
            "",
            *_table(["", *names], [[name, *(f"{found[g]:.2f}" for g in names)] for name, found in groups.items()]),
            "",
        ]
    )


def _row(task: str, result: dict[str, Any], others: list[str]) -> list[str]:
    values = result["values"]
    cells = [task, str(sum(result["prompts"].values()) if task == "mean" else result["prompts"][task])]
    if "generated" in values:
        keys = (*(f"{task}, {language}" for language in LANGUAGES), task)
        cells += [*(_cell(values["generated"][key]) for key in keys), f"{REACH[task]:.2f}"]
    return cells + [_cell(values[name][task]) for name in others]


def _cell(one: dict[str, float]) -> str:
    return f"{one['value']:.2f} ({max(0, one['low']):.2f} to {min(1, one['high']):.2f})"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
