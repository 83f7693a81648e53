"""The measure's numbers as Markdown tables."""

from typing import Any

from examples.emoji.follow_requests import COUNTS, LANGUAGES

REACH = {
    "single object": 0.75, "two objects": 0.5, "counting": 0.6, "colours": 0.7, "position": 0.45,
    "colour attribution": 0.35, "mean": 0.56,
}  # fmt: skip


def write_markdown(result: dict[str, Any]) -> str:
    """The page of one result of `examples.emoji.follow`."""
    classifier, values = result["classifier"], result["values"]
    others = [name for name in values if name != "generated"]
    header = ["task", "prompts", *LANGUAGES, "both", "reach", *others]
    rows = [_row(task, result, others) for task in (*(t for t in COUNTS if t in values["real"]), "mean")]
    groups = result["groups"]["generated"]
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    return "\n".join(
        [
            f"Model {result['model_hash']}, {result['part']} prompts, {result['pictures']} pictures of each in each "
            f"language, seed {result['seed']}; {settings}.",
            f"The classifier knows {classifier['objects']} objects and names {classifier['accuracy']:.2f} of views of "
            f"{classifier['held_out_drawings']} real pictures right that it was not taught. "
            "Intervals (95 %) are over prompts.",
            "",
            *_table(header, rows),
            "",
            "Single objects by group:",
            "",
            *_table(list(groups), [[f"{value:.2f}" for value in groups.values()]]),
            "",
        ]
    )


def _row(task: str, result: dict[str, Any], others: list[str]) -> list[str]:
    values = result["values"]
    prompts = sum(result["prompts"].values()) if task == "mean" else result["prompts"][task]
    languages = [_cell(values["generated"][f"{task}, {language}"]) for language in LANGUAGES]
    both = _cell(values["generated"][task])
    return [task, str(prompts), *languages, both, f"{REACH[task]:.2f}", *(_cell(values[name][task]) for name in others)]


def _cell(one: dict[str, float]) -> str:
    return f"{one['value']:.2f} ({max(0, one['low']):.2f} to {min(1, one['high']):.2f})"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
