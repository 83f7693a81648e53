"""Image folders: what is read, how pixels are made, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.data import folder as module
from latentdiff.data.batches import Batches
from latentdiff.data.folder import CaptionedImages, load_image, read_folder, to_pixels
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


def test_rows_captions_and_columns(pictures: Path) -> None:
    rows = read_folder(pictures)
    assert [row.captions for row in rows[:2]] == [("first", "one"), ("picture 1",)]
    assert rows[1].path == pictures / "1.png" and rows[1].columns["style"] == "odd"
    assert [row.path.stem for row in read_folder(pictures, {"style": ("odd",)})] == ["1", "3"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "gone.png", "text": "x"}, r"gone\.png does not exist"),
        ({"file_name": "../x.png", "text": "x"}, "leaves the folder"),
        ({"file_name": "0.png"}, "needs the JSON keys file_name and text"),
        ({"text": "x"}, "needs the JSON keys"),
        ("{broken", "needs the JSON keys"),
        ("[]", "needs the JSON keys"),
        ("", "add pictures or keep more"),
    ],
)
def test_broken_rows_are_named(pictures: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_folder(write(pictures, row))
    assert "\n" not in str(caught.value)


def test_folders_that_hold_nothing(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(InputError, match=r"holds no metadata\.jsonl"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match=r"that data\.keep lists"):
        read_folder(pictures, {"style": ("none",)})


def test_transparency_lies_on_white_and_exif_turns(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png", 8)).min() == 255
    turned = Image.new("RGB", (16, 16))
    turned.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned.save(tmp_path / "turned.png", exif=exif)
    found = np.asarray(load_image(tmp_path / "turned.png", 16))
    assert found[:8].max() == 0 and found[8:].min() == 255


def test_the_centre_is_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    assert np.asarray(load_image(tmp_path / "wide.png", 10)).min() == 255


def test_pixels_run_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (2, 2), (0, 255, 51))
    assert torch.allclose(to_pixels(image)[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_files_that_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(InputError, match="not a readable image"):
        load_image(tmp_path / "x.png", 8)
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    with pytest.raises(InputError, match="not a readable image"):
        load_image(tmp_path / "cut.png", 8)
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="20x20 is over 100 pixels"):
        load_image(tmp_path / "large.png", 8)


def test_an_item_depends_on_its_draw_alone(pictures: Path) -> None:
    data = CaptionedImages(read_folder(pictures), 8, flip=0.5)
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
