"""Atomic file writes."""

from pathlib import Path

import pytest

from latentdiff.errors import CheckpointError, InputError, did_you_mean
from latentdiff.files import atomic_path, check_writable_parent, finished_files, read_json


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        with atomic_path(target) as partial:
            partial.write_text("ne")
            raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_paths_where_no_file_can_be_created(tmp_path: Path) -> None:
    check_writable_parent(tmp_path / "a.png")
    with pytest.raises(InputError, match="does not exist"):
        check_writable_parent(tmp_path / "no" / "a.png")
    with pytest.raises(InputError, match="is a folder"):
        check_writable_parent(tmp_path)


@pytest.mark.parametrize("path", ["n" * 240 + ".png", "n" * 300 + ".png", "n" * 300 + "/a.png"])
def test_names_too_long_for_the_temporary_file_are_rejected_before_any_work(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use a shorter name"):
        check_writable_parent(tmp_path / path)


def test_unreadable_json_names_the_next_action(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text("{")
    for name in ("cut.json", "missing.json"):
        with pytest.raises(CheckpointError, match=f"{name} .*; delete it$"):
            read_json(tmp_path / name, "delete it")


def test_suggestions() -> None:
    assert did_you_mean("eulr", ["ddim", "euler"]) == "did you mean 'euler'?"
    assert did_you_mean("zzz", ["ddim", "euler"]) == "known: ddim, euler"


def test_files_that_are_being_written_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    with atomic_path(tmp_path / "0.png") as partial:
        partial.touch()
        assert partial in tmp_path.glob("*.png")
        assert finished_files(tmp_path, "*.png") == [tmp_path / "1.png"]
    assert finished_files(tmp_path, "*.png") == [tmp_path / "0.png", tmp_path / "1.png"]
