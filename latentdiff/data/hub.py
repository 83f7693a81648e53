"""Datasets from the Hugging Face hub, and datasets saved with `save_to_disk`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from latentdiff.data.archives import Container
from latentdiff.data.tables import image_column, table_container, text_column
from latentdiff.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

OPTIONS = ("split", "config", "image", "text")
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
EXTRA = 'needs the datasets package; pip install "latentdiff[datasets]"'


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder, with one or several splits."""
    one = all((path / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (path / "dataset_dict.json").is_file()


def open_hub(source: str) -> Container:
    """Download `hf://owner/name`, optionally with `?split=train&config=…&image=image&text=text`.

    Raises InputError for an invalid form, an inaccessible dataset, and a dataset without these columns.
    """
    repository, options = _parse(source)
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError(f"{source} {EXTRA}") from error
    try:
        dataset = load_dataset(repository, options.get("config"), split=options.get("split", "train"))
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(f"{source} is not accessible ({_line(error)}); check its name, split and config") from error
    return _container(dataset, source, options)


def open_saved(path: Path) -> Container:
    """Open a folder that `save_to_disk` wrote, or its split `train` if it has several. Raises InputError."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(f"{path} {EXTRA}") from error
    if (path / "dataset_dict.json").is_file():
        if not is_saved(path / "train"):
            raise InputError(f"{path} has no split named train; give the folder of one split, {path}/…")
        return open_saved(path / "train")
    try:
        dataset = load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({_line(error)}); save it again") from error
    return _container(dataset, str(path), {})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parse(source: str) -> tuple[str, dict[str, str]]:
    repository, _, query = source.removeprefix("hf://").partition("?")
    if not REPOSITORY.fullmatch(repository):
        raise InputError(f"{source} is not a dataset; write hf://owner/name, hf://owner/name?split=train")
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # split=train+test
    for key, value in options.items():
        if key not in OPTIONS:
            raise InputError(f"{source}: unknown {key!r}; {did_you_mean(key, OPTIONS)}")
        if not value:
            raise InputError(f"{source}: {key} is empty; give a value or remove it")
    return repository, options


def _container(dataset: "Dataset", source: str, options: dict[str, str]) -> Container:
    from datasets import Image

    dataset = dataset.with_format(None)
    images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    image = image_column(images, source, options.get("image"))
    text = text_column(dataset.column_names, source, options.get("text"))
    pictures = dataset.select_columns(image).cast_column(image, Image(decode=False))
    others = dataset.remove_columns(images)

    def records() -> Iterable[dict[str, Any]]:
        return others if others.column_names else [{}] * len(dataset)

    return table_container(source, len(dataset), lambda k: pictures[k][image], records, text)
