"""Folders, zip and tar files: listing, reading and errors."""

import os
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from latentdiff.data import archives
from latentdiff.data.archives import open_container
from latentdiff.data.layouts import read_layout
from latentdiff.errors import InputError
from tests.data.test_layouts import PNG, as_folder, as_tar, as_zip, picture


def with_password(data: bytearray) -> None:
    for signature, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.find(signature) + place] |= 1


def with_unknown_method(data: bytearray) -> None:
    data[data.find(b"PK\x01\x02") + 10] = 99


def with_other_bytes(data: bytearray) -> None:
    data[60:80] = bytes(20)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("spoil", [with_password, with_unknown_method, with_other_bytes])
def test_zip_members_that_cannot_be_unpacked_are_named(  # type: ignore[no-untyped-def]
    spoil, compression: int, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "x.ZIP", "w", compression) as archive:
        archive.writestr("a.png", PNG)
    data = bytearray((tmp_path / "x.ZIP").read_bytes())
    spoil(data)
    (tmp_path / "x.ZIP").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.ZIP/a\.png cannot be unpacked .*; pack it again"):
        read_layout(open_container(tmp_path / "x.ZIP"), "{name}").rows[0].read()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.zip", b"no zip", r"x\.zip is damaged"),
        ("x.tar", b"no tar" * 200, r"x\.tar is damaged"),
        ("x.rar", b"", r"is not a folder, \.zip or \.tar"),
        ("gone", None, "does not exist"),
    ],
)
def test_unreadable_containers_are_one_line_errors(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_container(tmp_path / name)


def test_archive_members_outside_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = open_container(as_tar({"../a.png": PNG, "/b.png": PNG, "c.png": PNG}, tmp_path)).names
    assert names == ("c.png",)
    monkeypatch.setattr(archives, "MAX_FILE", 10)
    for pack in (as_zip, as_tar):
        with pytest.raises(InputError, match="would unpack to"):
            open_container(pack({"a.png": PNG}, tmp_path))


def test_linked_folders_are_followed_without_endless_loops(tmp_path: Path) -> None:
    as_folder({"elsewhere/a.png": PNG, "set/b.png": PNG, "set/c.JFIF": PNG}, tmp_path)
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "set")
    assert [*open_container(tmp_path / "set").pictures] == ["b.png", "c.JFIF", "link/a.png"]


def test_a_folder_without_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); change its permissions"):
        open_container(tmp_path)


def zip_with_name(path: Path, stored: bytes, extra: bytes = b"") -> Path:
    """A zip whose only folder has a name of these bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("N" * len(stored) + "/x.png")
        info.extra = extra
        archive.writestr(info, PNG)
    path.write_bytes(path.read_bytes().replace(b"N" * len(stored), stored))
    return path


def unicode_path(stored: bytes, name: str) -> bytes:
    value = b"\x01" + zlib.crc32(stored).to_bytes(4, "little") + name.encode()
    return (0x7075).to_bytes(2, "little") + len(value).to_bytes(2, "little") + value


@pytest.mark.parametrize("name", ["café", "猫", "кошка"])
def test_zip_names_are_read_in_the_encoding_that_the_archive_states(name: str, tmp_path: Path) -> None:
    utf8, old = name.encode(), {"café": "cp850", "猫": "cp932", "кошка": "cp866"}[name]
    stored = name.encode(old) + b"/x.png"
    for path in (
        as_zip({f"{name}/x.png": PNG}, tmp_path),
        zip_with_name(tmp_path / "plain.zip", utf8),
        zip_with_name(tmp_path / "field.zip", name.encode(old), unicode_path(stored, f"{name}/x.png")),
    ):
        (only,) = read_layout(open_container(path), "a {name}").rows
        assert (only.captions, only.read()) == ((f"a {name}",), PNG)


def test_zip_names_of_unknown_encoding_are_refused_as_captions(tmp_path: Path) -> None:
    path = zip_with_name(tmp_path / "x.zip", "猫".encode("cp932"))
    with pytest.raises(InputError, match=r"does not state the encoding of its file names.*pack it again with UTF-8"):
        read_layout(open_container(path), "a {name}")
    assert read_layout(open_container(path)).rows[0].read() == PNG  # named x, which needs no folder


def test_a_thread_opens_a_zip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    whole = zipfile.ZipFile.__init__

    def counted(self: zipfile.ZipFile, *arguments: Any, **options: Any) -> None:
        opened.append(threading.get_ident())
        whole(self, *arguments, **options)

    path = as_zip({f"{k}.png": picture(colour) for k, colour in enumerate(("red", "blue", "green"))}, tmp_path)
    monkeypatch.setattr(zipfile.ZipFile, "__init__", counted)
    container = open_container(path)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(container.read, container.names * 20))
    assert found == [picture("red"), picture("blue"), picture("green")] * 20
    assert len(opened) == len(set(opened)) <= 4


class Members(torch.utils.data.Dataset[bytes]):
    """The files of a container, for workers that a data loader forks."""

    def __init__(self, path: Path) -> None:
        self.container = open_container(path)

    def __len__(self) -> int:
        return len(self.container.names)

    def __getitem__(self, k: int) -> bytes:
        return self.container.read(self.container.names[k])


def test_forked_processes_read_a_zip_through_separate_handles(tmp_path: Path) -> None:
    members = Members(as_zip({f"{k:02}.png": bytes([k]) * 50_000 for k in range(50)}, tmp_path))
    loader = torch.utils.data.DataLoader(members, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == [bytes([k]) * 50_000 for k in range(50)]


def test_large_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE", 10)
    with pytest.raises(InputError, match=r"a\.png has \d+ bytes, more than 10; remove it"):
        open_container(as_folder({"a.png": PNG}, tmp_path)).read("a.png")


def test_tar_names_that_are_not_utf_8_are_printable_and_refused_as_captions(tmp_path: Path) -> None:
    path = as_tar({"NN/x.png": PNG}, tmp_path)
    data = bytearray(path.read_bytes().replace(b"NN/", "猫".encode("cp932") + b"/"))
    data[148:156] = b" " * 8  # the checksum of the header (POSIX ustar), as if it were blank
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    container = open_container(path)
    (row,) = read_layout(container).rows
    row.where.encode()
    assert row.read() == PNG
    with pytest.raises(InputError, match="does not state the encoding"):
        read_layout(container, "a {name}")


def test_a_deleted_file_is_a_one_line_error(tmp_path: Path) -> None:
    container = open_container(as_folder({"a.png": PNG}, tmp_path))
    (tmp_path / "a.png").unlink()
    for use in (container.read, container.size):
        with pytest.raises(InputError, match=r"a\.png cannot be read \(No such file or directory\)"):
            use("a.png")
