"""Find the images that an interrupted `animate` or `grid` has already generated, next to its output."""

import hashlib
import json
from pathlib import Path

from latentdiff.recipe import Recipe, read_recipe


def cached_path(output: Path, folder: str, recipe: Recipe) -> Path:
    """The path of the image of a recipe; the file name is a hash of the recipe."""
    digest = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]
    return output.with_name(f"{output.stem}-{folder}") / f"{digest}.png"


def is_cached(path: Path, recipe: Recipe) -> bool:
    """Whether the image exists with this recipe. Raises InputError for a damaged file."""
    return path.exists() and read_recipe(path) == recipe
