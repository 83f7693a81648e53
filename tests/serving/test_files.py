"""Files that `url` responses refer to."""

import os
from pathlib import Path

import pytest

from latentdiff.serving.errors import NotFoundError
from latentdiff.serving.files import ResultFiles


def test_files_have_unguessable_names_and_limits_on_size_and_age() -> None:
    files = ResultFiles(limit=25)
    names = [files.write(bytes(10), "png") for _ in range(2)]
    folder = files.find(names[0]).parent
    os.utime(folder / names[0], (1, 1))
    third = files.write(bytes(10), "webp")
    assert len(set(names)) == 2 and all(len(name) > 30 for name in names)
    with pytest.raises(NotFoundError):
        files.find(names[0])
    assert files.find(names[1]).read_bytes() == bytes(10) and files.find(third)
    files.close()
    assert not folder.exists()


def test_files_are_uncollected_until_they_are_found_or_removed() -> None:
    files = ResultFiles(limit=25)
    first, second = (files.write(bytes(10), "png") for _ in range(2))
    assert files.uncollected == {first, second}
    files.find(second)
    os.utime(files.find(second).parent / first, (1, 1))
    third = files.write(bytes(10), "png")
    assert files.uncollected == {third}
    files.close()


@pytest.mark.parametrize("name", ["../../etc/passwd", "x.png", "", "a" * 32 + ".exe"])
def test_only_names_of_stored_files_are_found(name: str, tmp_path: Path) -> None:
    files = ResultFiles()
    files.write(b"x", "png")
    with pytest.raises(NotFoundError):
        files.find(name)
    files.close()
