"""Shards by pattern or URL: joining, downloading once, and errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from latentdiff.data import shards
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import check
from latentdiff.data.layouts import Layout, read_layout
from latentdiff.data.shards import expand
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from tests.data.test_layouts import as_tar, picture

COLOURS = ("red", "green", "blue")


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return as_tar(files, path.parent).rename(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, colour in enumerate(COLOURS):
        files = {f"{colour}.png": picture(colour), f"{colour}.txt": f"a {colour} square".encode()}
        write_tar(tmp_path / "shards" / f"{k:03}.tar", files)
    return tmp_path / "shards"


def captions(layout: Layout) -> dict[str, tuple[str, ...]]:
    return {row.name: row.captions for row in layout.rows}


WHOLE = {f"{k:03}.tar/{colour}.png": (f"a {colour} square",) for k, colour in enumerate(COLOURS)}


@pytest.mark.parametrize(
    "pattern", ["shards", "shards/{000..002}.tar", "shards/{000,001}.tar", "{shards}/00{0..2}.tar"]
)
def test_shards_are_joined(pattern: str, folder: Path) -> None:
    layout = read_layout(open_source(folder.parent / pattern))
    assert layout.kind == "sidecar files"
    assert captions(layout) == (WHOLE if "," not in pattern else dict(list(WHOLE.items())[:2]))
    assert [row.read() for row in layout.rows] == [picture(colour) for colour in COLOURS[: len(layout.rows)]]
    assert layout.rows[0].where == str(folder / "000.tar" / "red.png")


def test_a_folder_whose_name_has_braces_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "{0..1}").mkdir()
    (tmp_path / "{0..1}" / "cat.png").write_bytes(picture())
    assert open_source(str(tmp_path / "{0..1}")).names == ("cat.png",)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{9..10}.tar", ["9.tar", "10.tar"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_expand(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "no pictures were given"),
        ("{}.tar", r"\{\} is neither a range nor a list"),
        ("{a,}.tar", r"\{a,\} is neither a range nor a list"),
        ("{0..4..2}.tar", "is neither a range nor a list"),
        ("{9..0}.tar", "must count up"),
        ("{0..999999999}.tar", "at most 10000 shards"),
        ("{0..999}{0..999}.tar", "gives 1000000 shards, more than 10000"),
        ("{0..2.tar", "unpaired or nested braces"),
        ("{a{0..2}}.tar", "unpaired or nested braces"),
        ("gone-{0..2}.tar", r"gone-0\.tar does not exist"),
        ("ftp://host/0.tar", "only http:// and https://"),
        ("s3://bucket/{0..1}.tar", "only http:// and https://"),
        ("file:///etc/0.tar", "only http:// and https://"),
        ("https:///0.tar", "only http:// and https://"),
        ("https://host/pictures.zip", r"does not end in \.tar"),
        ("http://[::/0.tar", "is not a URL"),
    ],
)
def test_invalid_patterns_are_one_line_errors(
    pattern: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        open_source(pattern)
    assert "\n" not in str(caught.value)


def test_damaged_shards_are_named(folder: Path) -> None:
    whole = (folder / "001.tar").read_bytes()
    for end in (700, 1024, 1024 + 512, 2048):
        (folder / "001.tar").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"001\.tar is damaged"):
            open_source(folder)
    write_tar(folder / "001.tar", {"notes.txt": b"x"})
    with pytest.raises(InputError, match=r"001\.tar contains no pictures"):
        open_source(folder)
    (folder / "001.tar").write_bytes(whole)
    with pytest.raises(InputError, match=r"000\.tar is given twice"):
        open_source(f"{folder}/{{000,000}}.tar")


def test_a_shard_with_a_duplicate_name_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"cat.png": picture(), "./cat.png": picture("blue")})
    with pytest.raises(InputError, match=r"a\.tar contains cat\.png twice"):
        open_source(path)


def test_captions_and_classes_of_shards(tmp_path: Path) -> None:
    files = {f"{k}.jpg": picture() for k in "abcd"}
    texts = {
        "a.txt": b"from text",
        "a.json": b'{"text": "not this"}',
        "b.json": json.dumps({"prompt": ["x", "y"]}).encode(),
    }
    layout = read_layout(open_source(write_tar(tmp_path / "a.tar", files | texts | {"c.json": b"[1]"})))
    assert captions(layout) == {"a.jpg": ("from text",), "b.jpg": ("x", "y"), "c.jpg": (), "d.jpg": ()}
    classes = {"a.cls": b"red_apple", "b.cls": b"7"}
    layout = read_layout(open_source(write_tar(tmp_path / "a.tar", files | classes)), "a {name}!")
    assert layout.kind == "class files"
    assert captions(layout) == {"a.jpg": ("a red apple!",), "b.jpg": (), "c.jpg": (), "d.jpg": ()}
    for wrong, message in ((b"{", r"a\.json: .*repair or remove"), (b'{"text": 3}', "is not a caption")):
        with pytest.raises(InputError, match=message):
            read_layout(open_source(write_tar(tmp_path / "a.tar", files | {"a.json": wrong})))


def test_the_name_of_a_shard_is_not_a_class(tmp_path: Path) -> None:
    for k in range(2):
        write_tar(tmp_path / f"{k}.tar", {"red apple.png": picture()})
    assert read_layout(open_source(tmp_path)).kind == "file names"


class Handler(BaseHTTPRequestHandler):
    """Responses by path: (status, headers, body)."""

    answers: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        status, headers, body = self.answers.get(self.path, (404, {}, b"no"))
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Handler, "requests", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def serve(monkeypatch: pytest.MonkeyPatch, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
    monkeypatch.setattr(Handler, "answers", answers)


def test_shards_at_a_url_are_downloaded_once(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {f"/x/{path.name}?key=1": (200, {}, path.read_bytes()) for path in folder.iterdir()}
    moved = answers.pop("/x/002.tar?key=1")
    serve(monkeypatch, answers | {"/x/002.tar?key=1": (302, {"Location": "/moved"}, b""), "/moved": moved})
    for _ in range(2):
        layout = read_layout(open_source(f"{address}/x/{{000..002}}.tar?key=1"))
        assert captions(layout) == WHOLE
        assert layout.rows[2].read() == picture("blue")
        assert layout.rows[2].where == f"{address}/x/002.tar/blue.png"
    assert len(Handler.requests) == 4
    checked = check(f"{address}/x/{{000..002}}.tar?key=1", Fitting(8), lambda caption: "")
    assert (checked.pictures, checked.captions, checked.errors) == (3, 3, [])
    assert len(list((tmp_path / "cache" / "latentdiff" / "shards").iterdir())) == 3


WRONG = {
    "not found": ((404, {}, b"no"), r"0\.tar was not downloaded \(HTTP Error 404"),
    "no tar": ((200, {}, b"<html>" * 200), r"0\.tar is damaged"),
    "nothing": ((200, {}, b""), r"0\.tar is damaged"),
    "round in circles": ((302, {"Location": "/0.tar"}, b""), r"not downloaded \(HTTP Error 302"),
    "to another scheme": ((302, {"Location": "ftp://127.0.0.1/0.tar"}, b""), "it redirects to ftp://"),
    "to a file": ((302, {"Location": "file:///etc/passwd"}, b""), "not downloaded"),
    "cut short": ((200, {"Content-Length": "20000"}, bytes(10240)), "last 9760 bytes are missing"),
    "too large": ((200, {}, bytes(30000)), "it has more than 20000 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_failed_downloads_are_one_line_errors_and_leave_no_file(
    name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, message = WRONG[name]
    serve(monkeypatch, {"/0.tar": answer})
    monkeypatch.setattr(shards, "MAX_SHARD", 20000)
    with pytest.raises(InputError, match=message) as caught:
        open_source(f"{address}/0.tar")
    assert "\n" not in str(caught.value)
    assert len(Handler.requests) < 10
    assert list((tmp_path / "cache" / "latentdiff" / "shards").iterdir()) == []


def test_an_unwritable_cache_is_an_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match="was not downloaded"):
        open_source(f"{address}/0.tar")
