"""Captions in folders, zip and tar files, and invalid layouts."""

import io
import json
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from latentdiff.data.archives import open_container
from latentdiff.data.layouts import read_layout
from latentdiff.errors import InputError


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


PNG = picture()
LAYOUTS: dict[str, tuple[dict[str, bytes], str, dict[str, tuple[tuple[str, ...], int]]]] = {
    "jsonl": (
        {"a.png": PNG, "metadata.jsonl": jsonl({"file_name": "a.png", "text": "猫"})},
        "metadata",
        {"a.png": (("猫",), 1)},
    ),
    "csv": (
        {"a.png": PNG, "metadata.csv": '\ufefffile_name, text\na.png,"red, round"\n'.encode()},
        "metadata",
        {"a.png": (("red, round",), 1)},
    ),
    "nested metadata": (
        {"one/a.png": PNG, "one/metadata.jsonl": jsonl({"file_name": "a.png", "captions": ["x", " ", "y"]})},
        "metadata",
        {"one/a.png": (("x", "y"), 1)},
    ),
    "sidecars": (
        {"a.png": PNG, "a.txt": b"a red\n square \n", "sub/b.JPG": PNG, "sub/b.caption": b"b", "c.png": PNG},
        "sidecar files",
        {"a.png": (("a red square",), 1), "c.png": ((), 1), "sub/b.JPG": (("b",), 1)},
    ),
    "repeats": (
        {"10_sks dog/a.png": PNG, "2_cat/b.webp": PNG},
        "folders of repeats",
        {"10_sks dog/a.png": (("sks dog",), 10), "2_cat/b.webp": (("cat",), 2)},
    ),
    "repeats with sidecars": (
        {"10_sks dog/a.png": PNG, "10_sks dog/a.txt": b"a dog", "2_cat/b.png": PNG},
        "sidecar files",
        {"10_sks dog/a.png": (("a dog",), 10), "2_cat/b.png": ((), 2)},
    ),
    "years are no repeats": (
        {"2024_spring/a.png": PNG, "0_none/b.png": PNG},
        "a folder per class",
        {"2024_spring/a.png": (("2024 spring",), 1), "0_none/b.png": (("0 none",), 1)},
    ),
    "suffixes in capitals": (
        {"a.PNG": PNG, "a.TXT": b"a cat", "b.png": PNG, "b.Json": b'{"text": "a dog"}'},
        "sidecar files",
        {"a.PNG": (("a cat",), 1), "b.png": (("a dog",), 1)},
    ),
    "pictures that the metadata leave out": (
        {"a.png": PNG, "b.png": PNG, "metadata.jsonl": jsonl({"file_name": "a.png", "text": "x"})},
        "metadata",
        {"a.png": (("x",), 1), "b.png": ((), 1)},
    ),
    "metadata of nothing": (
        {"a cat.png": PNG, "metadata.jsonl": b""},
        "metadata",
        {"a cat.png": ((), 1)},
    ),
    "classes": (
        {"train/red_apple/1.png": PNG, "train/cat/1.png": PNG},
        "a folder per class",
        {"train/cat/1.png": (("cat",), 1), "train/red_apple/1.png": (("red apple",), 1)},
    ),
    "file names": (
        {"red-apple_02.png": PNG, "cat (1).png": PNG, "IMG_2041.png": PNG, "3f9a0c12e8.png": PNG},
        "file names",
        {
            "3f9a0c12e8.png": ((), 1),
            "IMG_2041.png": ((), 1),
            "cat (1).png": (("cat",), 1),
            "red-apple_02.png": (("red apple",), 1),
        },
    ),
}


def as_folder(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path / "x.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path / "x.zip"


def as_tar(files: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path / "x.tar", "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path / "x.tar"


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognised_in_every_container(name: str, pack, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    files, kind, expected = LAYOUTS[name]
    noise = {".hidden/x.png": PNG, "__MACOSX/a.png": PNG} if pack is not as_folder else {".hidden/x.png": PNG}
    layout = read_layout(open_container(pack(files | noise, tmp_path)))
    assert layout.kind == kind
    assert {row.name: (row.captions, row.repeats) for row in layout.rows} == expected
    assert all(row.read() == files[row.name] for row in layout.rows)


def test_the_template_applies_to_classes(tmp_path: Path) -> None:
    layout = read_layout(open_container(as_folder(LAYOUTS["classes"][0], tmp_path)), "a photo of a {name}")
    assert layout.rows[0].captions == ("a photo of a cat",)


def test_a_single_folder_is_a_class_if_a_template_is_given(tmp_path: Path) -> None:
    container = open_container(as_folder({"photos/cat/IMG_1.png": PNG}, tmp_path))
    assert read_layout(container).rows[0].captions == ()
    assert read_layout(container, "a photo of a {name}").rows[0].captions == ("a photo of a cat",)


def parquet(**columns: list[str]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def test_metadata_parquet_is_read_and_damage_is_a_one_line_error(tmp_path: Path) -> None:
    data = parquet(file_name=["a.png"], text=["猫"])
    folder = as_folder({"a.png": PNG, "metadata.parquet": data}, tmp_path)
    assert read_layout(open_container(folder)).rows[0].captions == ("猫",)
    messages: list[str] = []
    for place in range(4, len(data) - 8, 20):
        (folder / "metadata.parquet").write_bytes(data[:place] + b"\xff" * 6 + data[place + 6 :])
        try:
            read_layout(open_container(folder))
        except InputError as error:
            messages.append(str(error))
    assert messages and not any("\n" in line for line in messages)


def row(**values: object) -> dict[str, bytes]:
    return {"a.png": PNG, "metadata.jsonl": jsonl(values)}


WRONG: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": ({}, "contains no pictures"),
    "no pictures": ({"notes.doc": b"x"}, "contains no pictures"),
    "only hidden": ({".cache/a.png": PNG}, "contains no pictures"),
    "picture not there": (row(file_name="b.png", text="x"), r"b\.png is not in"),
    "path outside": (row(file_name="../a.png", text="x"), r"\.\./a\.png is not in"),
    "absolute path": (row(file_name="/etc/a.png", text="x"), r"/etc/a\.png is not in"),
    "no text": (row(file_name="a.png"), "needs file_name and text"),
    "no file name": (row(text="x"), "needs file_name and text"),
    "caption a number": (row(file_name="a.png", captions=[3]), "needs file_name and text"),
    "broken json": ({"a.png": PNG, "metadata.jsonl": b'{"file_name": '}, r"metadata\.jsonl:1: .* one JSON object"),
    "json of another kind": ({"a.png": PNG, "metadata.jsonl": b"[1]"}, r"metadata\.jsonl:1: .*needs file_name"),
    "csv without header": (
        {"a.png": PNG, "metadata.csv": b"a.png,x\nb.png,y\n"},
        r"metadata\.csv:2: .*needs file_name",
    ),
    "metadata not utf-8": ({"a.png": PNG, "metadata.csv": b"file_name,text\na.png,\xff\n"}, "is not UTF-8"),
    "sidecar not utf-8": ({"a.png": PNG, "a.txt": b"\xff\xfe"}, r"a\.txt is not UTF-8"),
    "metadata of nothing, no pictures": ({"metadata.csv": b""}, "contains no pictures"),
    "text a number": (row(file_name="a.png", text=3), r"jsonl:1: .*needs file_name and text"),
    "file name a list": (row(file_name=["a.png"], text="x"), r"jsonl:1: .*needs file_name and text"),
    "half a character": (
        {"a.png": PNG, "metadata.jsonl": rb'{"file_name": "a.png", "text": "x\ud800"}'},
        "lone surrogate",
    ),
    "json without end": ({"a.png": PNG, "metadata.jsonl": b"[" * 100_000}, "one JSON object"),
    "sidecar json without end": ({"a.png": PNG, "a.json": b"[" * 100_000}, "repair or remove it"),
    "endless csv field": ({"a.png": PNG, "metadata.csv": b'file_name,text\na.png,"' + b"x" * 200_000}, "is damaged"),
    "parquet that is none": ({"a.png": PNG, "metadata.parquet": b"x"}, r"metadata\.parquet"),
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_layouts_are_one_line_errors(name: str, tmp_path: Path) -> None:
    files, message = WRONG[name]
    with pytest.raises(InputError, match=message) as caught:
        read_layout(open_container(as_folder(files, tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl"])
def test_unreadable_caption_files_are_named(name: str, tmp_path: Path) -> None:
    as_folder({"a.png": PNG}, tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=rf"{name} cannot be read \(No such file or directory\); repair or remove it"):
        read_layout(open_container(tmp_path))


def test_file_names_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(PNG)
    with pytest.raises(InputError, match=r"caf\\udce9\.png': the file's name is not UTF-8; rename it"):
        open_container(tmp_path)


def test_a_comma_without_quotes_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    files = {"a.png": PNG, "metadata.csv": b'file_name,text\na.png,"one, two"\na.png,red, round\n'}
    with pytest.raises(InputError, match=r"metadata\.csv:3: 3 fields, but the header has 2; put double quotes"):
        read_layout(open_container(as_folder(files, tmp_path)))


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0b", "\x1c"])
def test_only_newlines_end_a_line_of_metadata(separator: str, tmp_path: Path) -> None:
    text = f"one{separator}two"
    lines = f'{{"file_name": "a.png", "text": "one{separator}two"}}\r\n'.encode()
    files = {"a.png": PNG, "metadata.jsonl": lines if separator > " " else jsonl({"file_name": "a.png", "text": text})}
    assert read_layout(open_container(as_folder(files, tmp_path))).rows[0].captions == ("one two",)
    files = {"a.png": PNG, "metadata.csv": f'file_name,text\r\na.png,"one\r\ntwo{separator}three"\r\n'.encode()}
    (tmp_path / "metadata.jsonl").unlink()
    assert read_layout(open_container(as_folder(files, tmp_path))).rows[0].captions == ("one two three",)


@pytest.mark.parametrize("key", ["text", "caption", "prompt", "captions"])
@pytest.mark.parametrize("value", ["a cat", ["a cat"]])
def test_metadata_takes_every_key_that_sidecars_take(key: str, value: object, tmp_path: Path) -> None:
    as_folder(row(file_name="a.png", **{key: value}), tmp_path)
    assert read_layout(open_container(tmp_path)).rows[0].captions == ("a cat",)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_forms_of_a_name_are_the_same(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    picture_name, text_name = (unicodedata.normalize(f, "café") for f in (form, other))
    as_folder({f"{picture_name}.png": PNG, f"{text_name}.txt": b"a cup"}, tmp_path)
    layout = read_layout(open_container(tmp_path))
    assert (layout.rows[0].captions, layout.ignored) == (("a cup",), [])
    as_folder({"metadata.jsonl": jsonl({"file_name": f"{text_name}.png", "text": "x"})}, tmp_path)
    assert read_layout(open_container(tmp_path)).rows[0].name == f"{picture_name}.png"


def test_text_files_named_after_the_whole_picture(tmp_path: Path) -> None:
    files = {"p0.png": PNG, "p0.png.txt": b"kohya", "p1.jpg": PNG, "p1.JPG.caption": b"no", "p1.jpg.json": b'"x"'}
    layout = read_layout(open_container(as_folder(files, tmp_path)))
    assert [row.captions for row in layout.rows] == [("kohya",), ()]


def test_files_that_are_not_used_are_listed_with_the_reason(tmp_path: Path) -> None:
    files = {
        "a.png": PNG, "a.txt": b"a", "a.caption": b"also", "lost.txt": b"x", "b.heic": b"x", "more.zip": b"x",
        "README.md": b"x", "LICENSE.txt": b"x",
    }  # fmt: skip
    layout = read_layout(open_container(as_folder(files, tmp_path)))
    assert dict(layout.ignored) == {
        "a.caption": "no picture has this name",
        "lost.txt": "no picture has this name",
        "b.heic": ".heic is not a supported image format",
        "more.zip": "archives next to pictures are not opened; pass it separately or unpack it",
    }
    as_folder({"metadata.jsonl": jsonl({"file_name": "a.png", "text": "x"})}, tmp_path)
    assert dict(read_layout(open_container(tmp_path)).ignored)["a.txt"] == "metadata has the captions"
