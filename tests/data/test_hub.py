"""Hugging Face datasets, from the hub or saved to disk."""

import sys
from pathlib import Path
from typing import Any

import pytest

from latentdiff.config.data import DataConfig
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check
from latentdiff.data.dataset import read_rows
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from tests.data.test_layouts import picture

datasets = pytest.importorskip("datasets")
COLOURS = ["red", "green", "blue"]


def dataset(**columns: list[Any]) -> Any:
    values = {"image": [{"bytes": picture(colour), "path": None} for colour in COLOURS[:3]]} | columns
    made = datasets.Dataset.from_dict(values)
    return made.cast_column("image", datasets.Image())


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The result of `load_dataset` and, after a call, its arguments."""
    state: dict[str, Any] = {}

    def load_dataset(repository: str, config: str | None, split: str) -> Any:
        state["request"] = (repository, config, split)
        if isinstance(state["gives"], Exception):
            raise state["gives"]
        return state["gives"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_rows_of_a_dataset_have_captions_and_columns(load: dict[str, Any]) -> None:
    load["gives"] = dataset(text=["a", None, "c"], style=["x", "x", "y"], other=[[1.0], [], []])
    config = DataConfig(train="hf://owner/name", prefix="sks", keep={"style": ("x",)})
    rows = read_rows(config.train, config)
    assert load["request"] == ("owner/name", None, "train")
    assert [(row.name, row.captions) for row in rows] == [("00000000", ("sks, a",)), ("00000001", ("sks",))]
    assert [row.read() for row in rows] == [picture("red"), picture("green")]
    assert rows[0].where == "hf://owner/name/00000000"


def test_split_config_and_columns_can_be_selected(load: dict[str, Any]) -> None:
    load["gives"] = dataset(words=[["a", "b"], [], ["c"]], text=["1", "2", "3"], caption=["p", "q", "r"])
    source = "hf://owner/name?split=train[:2]+test[:1]&config=small&image=image&text=words"
    checked = check(source, Fitting(8), lambda caption: "")
    assert load["request"] == ("owner/name", "small", "train[:2]+test[:1]")
    assert (checked.path, checked.pictures, checked.captions, checked.layout) == (source, 3, 3, "metadata")
    assert [finding.kind for finding in checked.errors] == ["no caption"]


def test_pictures_need_no_captions_with_a_prefix(load: dict[str, Any]) -> None:
    load["gives"] = dataset()
    assert [row.captions for row in read_rows("hf://o/n", DataConfig(train="x", prefix="sks"))] == [("sks",)] * 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://", "is not a dataset; write hf://owner/name"),
        ("hf://name", "is not a dataset"),
        ("hf://../name", "is not a dataset"),
        ("hf://o/n/more", "is not a dataset"),
        ("hf://o/n?spilt=train", "unknown 'spilt'; did you mean 'split'"),
        ("hf://o/n?split=", "split is empty"),
        ("hf://o/n?image=img", "no column 'img' of pictures; it has image"),
        ("hf://o/n?text=txet", "no column 'txet'; did you mean 'text'"),
        ("hf://o/n?text=label", "column 'label' contains 7"),
    ],
)
def test_invalid_urls_are_one_line_errors(source: str, message: str, load: dict[str, Any]) -> None:
    load["gives"] = dataset(text=["a", "b", "c"], label=[7, 8, 9])
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        read_rows(source, DataConfig(train=source))
    assert "\n" not in str(caught.value)


def test_inaccessible_datasets_are_errors(load: dict[str, Any]) -> None:
    for gives, message in (
        (ConnectionError("no\nnet"), r"is not accessible \(no net\)"),
        (datasets.exceptions.DatasetGenerationError("broken"), r"is not accessible \(broken\)"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "no column 'image' of pictures; it has none"),
        (dataset(text=["a", "b", "c"]).select([]), "contains no pictures"),
    ):
        load["gives"] = gives
        with pytest.raises(InputError, match=message):
            open_source("hf://owner/name")


def test_the_check_finds_rows_without_a_readable_picture(load: dict[str, Any]) -> None:
    broken = [None, {"bytes": None, "path": "/gone.png"}, {"bytes": b"no picture", "path": None}]
    load["gives"] = dataset(image=broken, text=["a", "b", "c"])
    checked = check("hf://owner/name", Fitting(8), lambda caption: "")
    assert [(finding.kind, finding.name) for finding in checked.errors] == [("unreadable", f"{k:08}") for k in range(3)]


def test_saved_datasets_of_one_or_several_splits(tmp_path: Path) -> None:
    whole = dataset(caption=["a", "b", "c"]).with_format("torch")
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(tmp_path / "several")
    for path, count in ((tmp_path / "one", 3), (tmp_path / "several", 3), (tmp_path / "several" / "test", 1)):
        rows = read_rows(path, DataConfig(train=path))
        assert [row.captions for row in rows] == [("a",), ("b",), ("c",)][:count]
        assert rows[0].read() == picture("red")
    datasets.DatasetDict(test=whole).save_to_disk(tmp_path / "no train")
    with pytest.raises(InputError, match="no split named train"):
        open_source(tmp_path / "no train")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        open_source(tmp_path / "one")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(text=["a", "b", "c"]).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("hf://owner/name", str(tmp_path / "saved")):
        with pytest.raises(InputError, match=r'pip install "latentdiff\[datasets\]"'):
            open_source(source)
