"""The corpus recipe on synthetic packages: joins, captions, split and exclusions."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.emoji import prepare as recipe
from examples.emoji.captions import captions, with_article
from examples.emoji.concepts import read_emoji
from examples.emoji.sources import SOURCES, code_of, fetch, pictures, read_members
from examples.emoji.split import CORE, HELD_OUT_CONCEPTS, HELD_OUT_PAIRS, is_held_out
from latentdiff.errors import InputError

NOT_BY_MICROSOFT = "1f491-1f3fc"


def svg(name: str) -> str:
    """A red square; each name has its own file."""
    return f'<rect id="{name}" width="32" height="32" fill="red"/>'


def entry(code: str, label: str, group: int | None, tags: list[str], **more: Any) -> dict[str, Any]:
    return {"hexcode": code, "label": label, "group": group, "tags": tags} | more


TONES = [{"hexcode": f"1F44B-1F3F{'BCDEF'[i]}", "label": f"tone {i}", "tone": i + 1} for i in range(5)]
ENGLISH = [
    entry("1F34E", "red apple", 4, ["apple", "fruit"]),
    entry("1F34C", "banana", 4, ["fruit"]),
    entry("1F428", "koala", 3, ["bear"]),
    entry("1F44B", "waving hand", 1, ["hello"], skins=TONES),
    entry("2764-FE0F", "red heart", 0, ["love"]),
    entry("1F523", "input symbols", 8, []),
    entry("1F1E6-1F1E8", "flag: Ascension", 9, []),
]
CHINESE = [
    entry(e["hexcode"], zh, e["group"], tags)
    for e, (zh, tags) in zip(
        ENGLISH,
        [
            ("红苹果", ["苹果", "水果"]),
            ("香蕉", ["水果"]),
            ("考拉", []),
            ("挥手", []),
            ("红心", []),
            ("符号", []),
            ("旗", []),
        ],
        strict=True,
    )
]
NAMES = {e["hexcode"].lower().replace("-fe0f", ""): e["label"].replace(" ", "-").replace(":", "") for e in ENGLISH}


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def webp(k: int) -> bytes:
    """A transparent picture with one opaque corner, unlike that of any other k."""
    buffer = io.BytesIO()
    image = Image.new("RGBA", (256, 256), (0, 0, 255, 0))
    image.paste((9 * k, 0, 0, 255), (0, 0, 8, 8))
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Tarballs with the names that npm gives them."""
    folder = tmp_path / "cache"
    folder.mkdir()
    data = {
        f"{language}/data.json": json.dumps(entries).encode()
        for language, entries in (("en", ENGLISH), ("zh", CHINESE))
    }
    pack(folder / "emojibase-data-17.0.0.tgz", data)
    for source in SOURCES:
        name, version = source.package.rsplit("@", 1)
        files = {"icons.json": {"width": 32, "height": 32, "icons": {n: {"body": svg(n)} for n in NAMES.values()}}}
        if source.style in CORE:
            files["chars.json"] = NAMES
        packed = {key: json.dumps(value).encode() for key, value in files.items()}
        if source.style == "fluent 3d":
            packed = {f"assets/{code}.webp": webp(k) for k, code in enumerate([*NAMES, NOT_BY_MICROSOFT])}
        pack(folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz", packed)
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_recipe_writes_the_complete_corpus(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    recipe.prepare(tmp_path / "out", cache, 32)
    rows, held = (read_rows(tmp_path / "out" / part) for part in ("train", "held_out"))
    assert {row["style"] for row in rows} == {source.style for source in SOURCES}
    assert {row["concept"] for row in rows + held} == {"red apple", "banana", "koala", "waving hand", "red heart"}
    assert {row["concept"] for row in held} >= {"koala"} and "koala" not in {row["concept"] for row in rows}
    for row in rows + held:
        part = "train" if row in rows else "held_out"
        image = Image.open(tmp_path / "out" / part / row["file_name"])
        assert (image.size, image.mode) == ((32, 32), "RGB")
        original = Image.open(tmp_path / "out" / "originals" / row["file_name"])
        assert (original.size, original.mode) == ((32, 32), "RGBA")
        assert image.getpixel((16, 16)) == ((255, 255, 255) if row["style"] == "fluent 3d" else (255, 0, 0))
    assert "Microsoft" in (tmp_path / "out" / "NOTICE").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]
    with pytest.raises(InputError, match="not an empty folder"):
        recipe.prepare(tmp_path / "out", cache, 32)


def test_no_pair_and_no_picture_is_on_both_sides(cache: Path) -> None:
    """A picture is not held out if its set uses the same picture for a trained concept."""
    emoji = read_emoji(cache / "emojibase-data-17.0.0.tgz")
    noto = next(source for source in SOURCES if source.style == "noto")
    found = {noto: {"1f428": b"bear", "1f34c": b"banana", "1f34e": b"apple"}}
    rows = recipe._without_twins(recipe._rows(emoji, found), found)
    assert {row["concept"]: row["part"] for row in rows} == {
        "koala": "held_out",
        "banana": "train",
        "red apple": "train",
    }
    found[noto]["1f428"] = b"banana"
    rows = recipe._without_twins(recipe._rows(emoji, found), found)
    assert {row["concept"] for row in rows} == {"banana", "red apple"}


def test_pictures_are_found_by_code_or_name_and_others_are_omitted(cache: Path) -> None:
    """fluent color, blob and emojitwo have no codes here and use those of the other sets."""
    found = pictures({source: fetch(source.package, cache) for source in SOURCES})
    assert all(images.keys() == NAMES.keys() for images in found.values())
    for source, images in found.items():
        assert source.style == "fluent 3d" or b'id="koala"' in images["1f428"]


def test_few_skin_tones_are_kept_and_they_belong_to_their_concept(cache: Path) -> None:
    emoji = read_emoji(cache / "emojibase-data-17.0.0.tgz")
    tones = [e for e in emoji.values() if "skin tone" in e.label]
    assert len(tones) < 5 and all(e.concept == "waving hand" for e in tones)
    assert "2764" in emoji and "1f523" not in emoji


def test_captions_name_concept_style_and_language(cache: Path) -> None:
    apple = read_emoji(cache / "emojibase-data-17.0.0.tgz")["1f34e"]
    assert apple.aliases == ("apple",) and apple.aliases_zh == ("苹果",)
    made = captions(apple, "fluent 3d")
    assert made == captions(apple, "fluent 3d")
    assert sum("fluent 3d" in caption for caption in made) == 7
    assert sum("苹果" in caption for caption in made) == 4
    assert {"a red apple, fluent 3d style", "a red apple", "an apple, fluent 3d style", "红苹果"} <= set(made)


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("owl", "an owl"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("glasses", "glasses"),
        ("cross", "a cross"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("bread", "bread"),
        ("loaf of bread", "a loaf of bread"),
        ("face with rolling eyes", "a face with rolling eyes"),
        ("men with bunny ears", "men with bunny ears"),
    ],
)
def test_articles(label: str, phrase: str) -> None:
    assert with_article(label) == phrase


def test_the_split_holds_out_few_pairs_and_leaves_three_styles_for_training() -> None:
    styles = {source.style for source in SOURCES}
    concepts = [f"concept {k}" for k in range(2000)]
    held = {c: {s for s in styles if is_held_out(c, s, styles)} for c in concepts}
    assert all(len(found & set(CORE)) <= 1 for found in held.values())
    assert all(("fluent color" in found) == ("fluent flat" in found) for found in held.values())
    share = sum(len(found & set(CORE)) for found in held.values()) / (4 * len(concepts))
    assert 0.5 * HELD_OUT_PAIRS < share < 1.2 * HELD_OUT_PAIRS
    assert not any(is_held_out(c, s, styles - {"noto"}) for c in concepts for s in styles)
    assert all(is_held_out(HELD_OUT_CONCEPTS[0], s, styles) for s in styles)
    assert not any(is_held_out("red apple", s, styles) for s in styles)


def test_the_split_does_not_change() -> None:
    """The held-out pictures of the bundled model must remain pictures that it was never trained on."""
    styles = {source.style for source in SOURCES}
    names = ("cookie", "dragon", "giraffe", "lion", "pizza", "tiger", "zebra")
    assert [name for name in names if is_held_out(name, "noto", styles)] == ["cookie", "dragon", "giraffe", "lion"]


def test_codes_have_one_spelling() -> None:
    assert code_of("2764-FE0F") == code_of("2764") == "2764"


@pytest.mark.parametrize("damage", ["cut", "flipped", "another package"])
def test_a_bad_package_is_named_in_the_error(cache: Path, damage: str) -> None:
    tarball = cache / "emojibase-data-17.0.0.tgz"
    data = bytearray(tarball.read_bytes())
    if damage == "flipped":
        data[-6] ^= 1  # the checksum: what tarfile alone does not read
    tarball.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    if damage == "another package":
        pack(tarball, {"index.js": b""})
    with pytest.raises(InputError, match=r"emojibase-data-17\.0\.0\.tgz .*; delete it"):
        read_emoji(tarball)


@pytest.mark.parametrize(("out", "size", "reason"), [("new", 0, "at least 1"), ("file/new", 32, "cannot be created")])
def test_bad_input_is_rejected_before_any_work(tmp_path: Path, out: str, size: int, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=reason):
        recipe.prepare(tmp_path / out, tmp_path / "cache", size)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_download_states_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="npm is not installed"):
        fetch("x@1.0.0", tmp_path / "cache")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\necho 'npm error 404 No such package.' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(InputError, match=r"npm pack x@1\.0\.0 failed: 404 No such package; check"):
        fetch("x@1.0.0", tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="another --cache"):
        fetch("x@1.0.0", tmp_path / "file" / "cache")


def test_a_damaged_package_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "x.tgz").write_bytes(b"no tarball")
    with pytest.raises(InputError, match="is damaged"):
        read_members(tmp_path / "x.tgz", ".*")
    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"no tarball")
    monkeypatch.setattr("sys.argv", ["prepare", str(tmp_path / "out"), "--cache", str(tmp_path)])
    assert recipe.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
