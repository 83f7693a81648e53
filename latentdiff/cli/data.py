"""`latentdiff data check`."""

import json
from pathlib import Path

from latentdiff.checkpoint import locate, read_limits
from latentdiff.data.check import check


def run(folder: Path, model: str | None, as_json: bool) -> int:
    """Print the report; 1 when it has errors, else 0."""
    resolution, text = read_limits(locate(model))
    report = check(folder, resolution, text.lost_words)
    print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else report.in_words())
    return 1 if report.errors else 0
