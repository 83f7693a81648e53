"""`latentdiff data check`."""

import json

from latentdiff.checkpoints.components import read_limits
from latentdiff.checkpoints.hub import locate
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check


def run(folder: str, model: str | None, caption_template: str, as_json: bool) -> int:
    """Print the report; 1 when it has errors, else 0."""
    limits = read_limits(locate(model))
    report = check(folder, Fitting(limits.resolution, limits.multiple), limits.text.lost_words, caption_template)
    print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else report.in_words())
    return 1 if report.errors else 0
