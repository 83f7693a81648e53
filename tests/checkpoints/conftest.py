"""Small random models of every family, as folders and single files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints.small_families import family_file


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The single file of a family; its folder is next to it and has the name of the family."""
    folder, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in made:
            made[name] = family_file(name, folder)
        return made[name]

    return get
