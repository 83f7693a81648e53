"""The table of prompts that other parsers read; its provenance and format are written in the file."""

import json
from pathlib import Path
from typing import Any

TABLE: list[dict[str, Any]] = json.loads((Path(__file__).parent / "prompt_reference.json").read_text("utf-8"))["rows"]


def rows_with(column: str) -> list[tuple[str, Any]]:
    """Prompts and the entries of the table in this column."""
    return [(row["prompt"], row[column]) for row in TABLE if column in row]
