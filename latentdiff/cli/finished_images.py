"""Find the images that an interrupted `animate` or `grid` has already generated, next to its output."""

import hashlib
import json
from pathlib import Path

from latentdiff.errors import InputError
from latentdiff.recipe import Recipe, read_recipe


def check_cache(output: Path, folder: str) -> None:
    """Raise InputError if a file is in the place of the folder of images."""
    path = _cache_folder(output, folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is not a folder, and -o {output} keeps images in one of this name; rename either")


def cached_path(output: Path, folder: str, recipe: Recipe) -> Path:
    """The path of the image of a recipe; the file name is a hash of the recipe."""
    digest = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]
    return _cache_folder(output, folder) / f"{digest}.png"


def is_cached(path: Path, recipe: Recipe) -> bool:
    """Whether the image exists with this recipe. Raises InputError for a damaged file."""
    return path.exists() and read_recipe(path) == recipe


def _cache_folder(output: Path, folder: str) -> Path:
    return output.with_name(f"{output.stem}-{folder}")
