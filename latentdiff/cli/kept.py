"""Images that a command keeps beside its output, so that it continues where it was interrupted."""

import hashlib
import json
from pathlib import Path

from latentdiff.recipe import Recipe, read_recipe


def kept_path(output: Path, folder: str, recipe: Recipe) -> Path:
    """Where the image of a recipe is kept: the name follows from the recipe, so that other settings do not collide."""
    digest = hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]
    return output.with_name(f"{output.stem}-{folder}") / f"{digest}.png"


def is_kept(path: Path, recipe: Recipe) -> bool:
    """Whether the image exists. Raises InputError for a damaged file."""
    return path.exists() and read_recipe(path) == recipe
