"""Sources other than plain folders and archives: archives in a folder, and tables of pictures."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check
from latentdiff.data.layouts import read_layout
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from tests.data.test_layouts import PNG, as_folder, as_tar, as_zip, jsonl, picture


def test_archives_next_to_metadata_are_opened(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    as_zip({"a.png": PNG, "sub/b.png": picture("blue")}, tmp_path).rename(tmp_path / "set" / "images.zip")
    lines = jsonl({"file_name": "a.png", "text": "a"}, {"file_name": "images/sub/b.png", "caption": "b"})
    as_folder({"metadata.jsonl": lines}, tmp_path / "set")
    layout = read_layout(open_source(tmp_path / "set"))
    assert layout.kind == "metadata" and layout.ignored == []
    assert {row.name: row.captions for row in layout.rows} == {
        "images.zip/a.png": ("a",),
        "images.zip/sub/b.png": ("b",),
    }
    assert layout.rows[1].read() == picture("blue")
    shutil.copy(tmp_path / "set" / "images.zip", tmp_path / "set" / "more.zip")
    with pytest.raises(InputError, match=r"a\.png is not in"):  # which of the two?
        read_layout(open_source(tmp_path / "set"))


@pytest.mark.parametrize("shape", ["struct", "binary"])
def test_parquet_with_pictures_inside(shape: str, tmp_path: Path) -> None:
    pyarrow, parquet_module = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = [picture(colour) for colour in ("red", "green", "blue", "black")]
    values = pictures if shape == "binary" else [{"bytes": data, "path": None} for data in pictures]
    captions = ["a", "b", None, "d"]
    for k in (0, 2):
        (tmp_path / "data").mkdir(exist_ok=True)
        table = pyarrow.table({"image": values[k : k + 2], "caption": captions[k : k + 2], "n": [k, k + 1]})
        parquet_module.write_table(table, tmp_path / "data" / f"train-{k}.parquet", row_group_size=1)
    layout = read_layout(open_source(tmp_path))
    assert [row.captions for row in layout.rows] == [("a",), ("b",), (), ("d",)]
    assert [row.read() for row in reversed(layout.rows)] == pictures[::-1]
    assert layout.rows[3].columns["n"] == 3
    (only, _) = read_layout(open_source(tmp_path / "data" / "train-0.parquet")).rows
    assert only.read() == pictures[0] and only.where.endswith("train-0.parquet/00000000")
    (tmp_path / "data" / "train-2.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"train-2\.parquet is damaged"):
        open_source(tmp_path)


FILES = {"猫/a.png": PNG, "猫/a.txt": "é".encode(), "b/b.png": picture("blue"), "b/b.json": b'{"text": ["x", "y"]}'}


def parquet_of_pictures(_: dict[str, bytes], folder: Path) -> Path:
    pyarrow, module = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": [{"bytes": PNG, "path": "a"}] * 3, "text": ["a", "b", "c"]})
    module.write_table(table, folder / "x.parquet")
    return folder / "x.parquet"


def metadata(name: str, data: bytes) -> Callable[[dict[str, bytes], Path], Path]:
    return lambda _, folder: as_folder({"a.png": PNG, name: data}, folder) / name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        as_zip,
        as_tar,
        parquet_of_pictures,
        metadata("metadata.jsonl", jsonl({"file_name": "a.png", "text": "x"})),
        metadata("metadata.csv", b'file_name,text\na.png,"x, y"\n'),
    ],
    ids=["zip", "tar", "parquet", "jsonl", "csv"],
)
def test_random_damage_is_checked_or_a_one_line_error(
    make: Callable[[dict[str, bytes], Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    path, rng, messages = make(FILES, tmp_path), random.Random(0), list[str]()
    whole = path.read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 4))):
            place = rng.randrange(len(data))
            data[place : place + rng.choice((1, 1, 1, 9, len(data)))] = rng.randbytes(rng.choice((1, 1, 1, 5)))
        path.write_bytes(data)
        try:
            checked = check(tmp_path if path.name.startswith("metadata") else path, Fitting(8), lambda caption: "")
            json.dumps(checked.to_json(), ensure_ascii=False).encode()
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 10 and not any("\n" in message for message in messages)
    "".join(messages).encode()
