"""Rows and tensors for training, and the order in which they come."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from latentdiff.config.train import DataConfig
from latentdiff.data.batches import Batches
from latentdiff.data.folder import CaptionedImages, read_parts, read_rows
from latentdiff.data.images import to_pixels
from latentdiff.data.layouts import Row
from latentdiff.errors import InputError


def write(folder: Path, *rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for k in range(5):
        Image.new("RGB", (20, 20), (50 * k, 0, 0)).save(tmp_path / f"{k}.png")
    rows = [{"file_name": f"{k}.png", "text": f"picture {k}", "style": "odd" if k % 2 else "even"} for k in range(5)]
    rows[0]["captions"] = ["first", "one"]  # type: ignore[assignment]
    return write(tmp_path, *rows)


def rows_of(folder: Path, **options: Any) -> list[Row]:
    return read_rows(folder, DataConfig(train=folder, **options))


def test_a_prefix_and_pictures_to_skip(pictures: Path) -> None:
    write(pictures, {"file_name": "0.png", "text": ""}, *({"file_name": f"{k}.png", "text": "x"} for k in (1, 2)))
    rows = rows_of(pictures, prefix="sks style", skip=("2.png",))
    assert [(row.name, row.captions) for row in rows] == [("0.png", ("sks style",)), ("1.png", ("sks style, x",))]


def test_every_twentieth_picture_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "2_red").mkdir()
    for k in range(40):
        Image.new("RGB", (4, 4)).save(tmp_path / "2_red" / f"{k:02}.png")
    train, held_out = read_parts(DataConfig(train=tmp_path))
    assert [row.name for row in held_out] == ["2_red/00.png", "2_red/20.png"]
    assert len(train) == 76 and not {row.name for row in train} & {row.name for row in held_out}
    few = DataConfig(train=tmp_path, skip=tuple(f"2_red/{k:02}.png" for k in range(25)))
    assert read_parts(few)[1] == []
    with pytest.raises(InputError, match=r"has 15 pictures; give 20 or more, or data\.held_out"):
        read_parts(few, measure=True)


def test_rows_captions_and_columns(pictures: Path) -> None:
    rows = rows_of(pictures)
    assert [row.captions for row in rows[:2]] == [("first", "one"), ("picture 1",)]
    assert rows[1].where == str(pictures / "1.png") and rows[1].columns["style"] == "odd"
    assert [row.name for row in rows_of(pictures, keep={"style": ("odd",)})] == ["1.png", "3.png"]


def test_nothing_to_train_on(pictures: Path) -> None:
    with pytest.raises(InputError, match=r"that data\.keep lists"):
        rows_of(pictures, keep={"style": ("none",)})
    with pytest.raises(InputError, match=r"0\.png has no caption; see all such with: latentdiff data check"):
        rows_of(write(pictures, {"file_name": "0.png", "text": " "}))


def test_folders_of_repeats_are_shown_as_often(tmp_path: Path) -> None:
    (tmp_path / "3_red").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "3_red" / "x.png")
    assert [row.captions for row in rows_of(tmp_path)] == [("red",)] * 3


def test_pixels_run_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (2, 2), (0, 255, 51))
    assert torch.allclose(to_pixels(image)[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_an_item_depends_on_its_draw_alone(pictures: Path) -> None:
    data = CaptionedImages(rows_of(pictures), 8, flip=0.5)
    captions = {data[0, draw]["caption"] for draw in range(20)}
    assert captions == {"first", "one"}
    assert torch.equal(data[0, 3]["pixels"], data[0, 3]["pixels"])


def take(batches: Batches, count: int) -> list[list[tuple[int, int]]]:
    stream = iter(batches)
    return [next(stream) for _ in range(count)]


def test_an_epoch_visits_every_row_once_in_a_new_order() -> None:
    items = [item for batch in take(Batches(10, 5, seed=1), 4) for item in batch]
    rows = [row for row, _ in items]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert [draw for _, draw in items] == list(range(20))


def test_any_step_can_be_the_first() -> None:
    assert take(Batches(7, 3, seed=2), 9)[5:] == take(Batches(7, 3, seed=2, start=5), 4)


def test_processes_share_the_stream_of_one() -> None:
    one = [item for batch in take(Batches(11, 6, seed=3), 5) for item in batch]
    two = [take(Batches(11, 3, seed=3, rank=rank, world=2), 5) for rank in range(2)]
    assert [item for pair in zip(*two, strict=True) for batch in pair for item in batch] == one
