"""Rows and tensors for training: selection, held-out pictures, captions and items."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from latentdiff.config.base import load_yaml
from latentdiff.config.data import DataConfig
from latentdiff.data.dataset import CaptionedImages, read_parts, read_rows
from latentdiff.data.layouts import DataRow
from latentdiff.errors import InputError
from latentdiff.images.decoding import to_pixels


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


def rows_of(folder: Path, **options: Any) -> list[DataRow]:
    return read_rows(folder, DataConfig(train=folder, **options))


def test_prefix_and_skip(pictures: Path) -> None:
    write(pictures, {"file_name": "0.png", "text": ""}, *({"file_name": f"{k}.png", "text": "x"} for k in (1, 2)))
    rows = rows_of(pictures, prefix="sks style", skip=("2.png",))
    assert [(row.name, row.captions) for row in rows] == [
        ("0.png", ("sks style",)), ("1.png", ("sks style, x",)), ("3.png", ("sks style",)), ("4.png", ("sks style",)),
    ]  # fmt: skip


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


def test_a_set_without_usable_rows_is_an_error(pictures: Path) -> None:
    with pytest.raises(InputError, match=r"that data\.keep selects"):
        rows_of(pictures, keep={"style": ("none",)})
    with pytest.raises(InputError, match=r"0\.png has no caption; list all such pictures with latentdiff data check"):
        rows_of(write(pictures, {"file_name": "0.png", "text": " "}))


def test_folder_repeats_become_rows(tmp_path: Path) -> None:
    (tmp_path / "3_red").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "3_red" / "x.png")
    assert [row.captions for row in rows_of(tmp_path)] == [("red",)] * 3


def test_the_template_applies_to_classes_with_a_name(tmp_path: Path) -> None:
    for name in ("red_apple", "cat", "123"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    rows = rows_of(tmp_path, caption_template="a photo of a {name}", skip=("123/x.png",))
    assert [row.captions for row in rows] == [("a photo of a cat",), ("a photo of a red apple",)]
    with pytest.raises(InputError, match=r"123/x\.png has no caption"):
        rows_of(tmp_path, caption_template="a photo of a {name}")


@pytest.mark.parametrize(
    "template", ["", "a cat", "{}", "{class}", "{name} {age}", "{name!r}", "{name.x}", "{name:>{n}}", "{"]
)
def test_a_template_must_have_name_as_its_only_field(template: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"train": "x", "caption_template": template}))
    with pytest.raises(InputError, match=r"caption_template=.*; (try|write)") as caught:
        load_yaml(TypeAdapter(DataConfig), file)
    assert "\n" not in str(caught.value)


def test_the_config_does_not_change_urls(tmp_path: Path) -> None:
    raw = {"train": "https://host//a/{000..009}.tar", "held_out": "hf://owner/name?split=test"}
    config = DataConfig.model_validate(raw)
    dumped = config.model_dump(mode="json")
    assert {key: dumped[key] for key in raw} == raw == {key: str(getattr(config, key)) for key in raw}


def test_pixels_run_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (2, 2), (0, 255, 51))
    assert torch.allclose(to_pixels(image)[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_an_item_depends_only_on_its_draw(pictures: Path) -> None:
    data = CaptionedImages(rows_of(pictures), DataConfig(train=pictures, resolution=8, flip=0.5))
    captions = {data[0, draw]["caption"] for draw in range(20)}
    assert captions == {"first", "one"}
    assert torch.equal(data[0, 3]["pixels"], data[0, 3]["pixels"])


def test_columns_are_kept_by_their_text_and_unknown_ones_are_errors(pictures: Path) -> None:
    write(pictures, *({"file_name": f"{k}.png", "text": "x", "year": 2020 + k} for k in range(5)))
    assert [row.name for row in rows_of(pictures, keep={"year": ("2021", "2024")})] == ["1.png", "4.png"]
    with pytest.raises(InputError, match=r"data\.keep: .* has no column 'yaer'; did you mean 'year'"):
        rows_of(pictures, keep={"yaer": ("2021",)})
