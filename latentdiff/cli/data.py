"""`latentdiff data check`: check a dataset and print the result."""

import json
from typing import Any

from latentdiff.checkpoints.components import open_model, read_limits
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.config.data import data_config
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check


def run(folder: str, model: str | None, as_json: bool, how: dict[str, Any], **options: object) -> int:
    """Print the result of a check; returns 1 if there are errors, else 0.

    how: fields of OpenOptions. options: fields of DataConfig.
    """
    limits = read_limits(open_model(model, OpenOptions(**how)))
    given = {"resolution": limits.resolution} | {name: value for name, value in options.items() if value is not None}
    config = data_config(train=folder, **given)
    fitting = Fitting.of(config, limits.multiple)
    checked = check(folder, fitting, limits.text.lost_words, config.caption_template, config.prefix)
    print(json.dumps(checked.to_json(), ensure_ascii=False, indent=2) if as_json else checked.summary())
    return 1 if checked.errors else 0
