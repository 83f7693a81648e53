"""Generation settings stored in image files by latentdiff, A1111 and ComfyUI."""

from latentdiff.recipe.files import CHUNK, check_suffix, image_metadata, write_image
from latentdiff.recipe.reading import StoredRecipe, read_any, read_recipe
from latentdiff.recipe.schema import Recipe

__all__ = [
    "CHUNK",
    "Recipe",
    "StoredRecipe",
    "check_suffix",
    "image_metadata",
    "read_any",
    "read_recipe",
    "write_image",
]
