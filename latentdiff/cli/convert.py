"""`latentdiff convert`: write a model as a folder or a single file."""

from pathlib import Path
from typing import Any

from latentdiff.checkpoints.components import open_model
from latentdiff.checkpoints.convert import FORMATS, convert
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.errors import InputError, did_you_mean
from latentdiff.files import check_writable_parent
from latentdiff.runtime.device import DTYPES


def run(source: str, target: Path, dtype: str | None, form: str | None, how: dict[str, Any]) -> None:
    """Convert a model. By default, the target is a single file if it has a suffix, else a folder."""
    chosen = form or ("single-file" if target.suffix else "diffusers")
    if chosen not in FORMATS:
        raise InputError(f"--format {chosen} is unknown; {did_you_mean(chosen, FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype} is unknown; {did_you_mean(dtype, DTYPES)}")
    if chosen == "diffusers" and target.exists():
        raise InputError(f"{target} exists; choose a new folder")
    check_writable_parent(target)
    model = open_model(source, OpenOptions(**how))
    for note in [*model.notes, *convert(model, target, chosen, None if dtype is None else DTYPES[dtype])]:
        print(note)
    print(target)
