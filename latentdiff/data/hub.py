"""Datasets of the Hugging Face hub, or saved by its `datasets` package, seen as pictures beside a metadata file."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from latentdiff.data.archives import MAX_FILE, Container
from latentdiff.data.layouts import CAPTION_KEYS
from latentdiff.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

OPTIONS = ("split", "config", "image", "text")
METADATA = "metadata.jsonl"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
EXTRA = 'needs the datasets package; pip install "latentdiff[datasets]"'


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder, with one split or with several."""
    one = all((path / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (path / "dataset_dict.json").is_file()


def open_hub(source: str) -> Container:
    """Open `hf://owner/name`, with `?split=train&config=…&image=image&text=text` as far as needed, over the network.

    Raises InputError for another form, a dataset that cannot be had, or one without such columns.
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
        raise InputError(f"{source} cannot be had ({_line(error)}); check its name, split and config") from error
    return _container(dataset, source, options)


def open_saved(path: Path) -> Container:
    """Open a folder that `save_to_disk` wrote; of several splits the one named train. Raises InputError."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(f"{path} {EXTRA}") from error
    if (path / "dataset_dict.json").is_file():
        if not is_saved(path / "train"):
            raise InputError(f"{path} has no split named train; name the folder of one split, {path}/…")
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
        raise InputError(f"{source} is no dataset; write hf://owner/name, hf://owner/name?split=train")
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # split=train+test
    for key, value in options.items():
        if key not in OPTIONS:
            raise InputError(f"{source}: unknown {key!r}; {did_you_mean(key, OPTIONS)}")
        if not value:
            raise InputError(f"{source}: {key} is empty; give a value or leave it out")
    return repository, options


def _container(dataset: "Dataset", source: str, options: dict[str, str]) -> Container:
    """Row 12 is the picture `00000012`, as it was stored; captions and plain columns are lines of `metadata.jsonl`."""
    from datasets import Image

    dataset = dataset.with_format(None)
    images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    image = _image_column(images, source, options.get("image"))
    text = _text_column(dataset.column_names, source, options.get("text"))
    if not len(dataset):
        raise InputError(f"{source} holds no pictures; name another split or dataset")
    pictures = dataset.select_columns(image).cast_column(image, Image(decode=False))
    others = dataset.remove_columns(images)
    names = tuple(f"{k:08}" for k in range(len(dataset)))

    def read(name: str) -> bytes:
        if name == METADATA:
            rows = others if others.column_names else [{}] * len(names)
            lines = (_metadata_line(*pair, text, source) for pair in zip(names, rows, strict=True))
            return "\n".join(lines).encode()
        return _picture(pictures[int(name)][image], f"{source}/{name}")

    return Container(source, (*names, METADATA), read)


def _image_column(images: list[str], source: str, asked: str | None) -> str:
    wanted = asked or ("image" if "image" in images or len(images) != 1 else images[0])
    if wanted not in images:
        raise InputError(f"{source} has no column {wanted!r} of pictures; it has {', '.join(images) or 'none'}")
    return wanted


def _text_column(columns: list[str], source: str, asked: str | None) -> str | None:
    """The column asked for or the first that is called as captions are; None leaves the captions to a prefix."""
    if asked is not None and asked not in columns:
        raise InputError(f"{source} has no column {asked!r}; {did_you_mean(asked, columns)}")
    return asked or next((key for key in CAPTION_KEYS if key in columns), None)


def _metadata_line(name: str, row: dict[str, Any], text: str | None, source: str) -> str:
    value = row[text] if text else None
    captions = value if isinstance(value, list) else [value or ""]
    if not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{source}: column {text!r} holds {value!r}, which is no caption; name another with ?text=")
    plain = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
    return json.dumps(plain | {"file_name": name, "captions": captions or [""]})


def _picture(value: dict[str, Any] | None, where: str) -> bytes:
    """The stored bytes, or those of the file that the row names."""
    try:
        data = (value["bytes"] or Path(value["path"]).read_bytes()) if value else b""
    except (OSError, TypeError) as error:
        raise InputError(f"{where} cannot be read ({_line(error)}); save the dataset with its pictures") from error
    if len(data) > MAX_FILE:
        raise InputError(f"{where} has {len(data)} bytes, over {MAX_FILE}; take it out")
    return data
