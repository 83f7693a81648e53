"""Read the recipe in an image file of any supported program; does not open the paths in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latentdiff.errors import InputError
from latentdiff.recipe.comfyui import parse_comfyui
from latentdiff.recipe.embedded_text import read_texts
from latentdiff.recipe.files import CHUNK
from latentdiff.recipe.infotext import parse_infotext
from latentdiff.recipe.schema import Recipe


@dataclass(frozen=True)
class StoredRecipe:
    """A recipe as read. settings: with the field names of `Recipe`. dropped: settings that are not supported.

    program: the program that wrote the file. recipe: only for files of latentdiff.
    """

    settings: dict[str, Any]
    program: str
    dropped: list[str]
    recipe: Recipe | None = None


def read_any(path: Path) -> StoredRecipe:
    """Read a recipe of latentdiff, A1111 or ComfyUI. Raises InputError if there is none, or it is damaged."""
    texts = read_texts(path)
    if CHUNK in texts:
        recipe = _ours(texts[CHUNK], path)
        return StoredRecipe(recipe.model_dump(exclude_none=True), "latentdiff", [], recipe)
    for program, name, parse in (("A1111", "parameters", parse_infotext), ("ComfyUI", "prompt", parse_comfyui)):
        if name in texts and (parsed := parse(texts[name])) is not None:
            settings, dropped = parsed
            return StoredRecipe(settings, program, dropped)
    raise InputError(f"{path} contains no recipe; use an original file of latentdiff, A1111 or ComfyUI")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe of latentdiff. Raises InputError if there is none, or it is damaged."""
    found = read_any(path)
    if found.recipe is None:
        raise InputError(f"{path} was made by {found.program}, not latentdiff; only generate --recipe can read it")
    return found.recipe


def _ours(text: str, path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its beginning"
        raise InputError(f"{path}: its recipe is damaged at {place}: {first['msg']}; generate it again") from error
