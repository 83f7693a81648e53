"""A recipe goes into a PNG and comes out the same; anything else is one line."""

import errno
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from latentdiff import recipe as module
from latentdiff.errors import InputError
from latentdiff.recipe import CHUNK, Recipe, read_recipe, write_png

RECIPE = Recipe(
    prompt="猫, a \"cat\"\nface", negative_prompt="dog", seed=2**40, sampler="ddim", eta=0.1, steps=3,
    guidance_scale=5.0, height=8, width=4, dtype="float32", model_hash="0" * 16, version="0.1.0",
)  # fmt: skip


def picture() -> Image.Image:
    return Image.new("RGB", (4, 8), "red")


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(picture(), RECIPE, path)
    assert read_recipe(path) == RECIPE
    with Image.open(path) as image:
        words = image.text["parameters"]  # type: ignore[attr-defined]
        assert image.tobytes() == picture().tobytes()
    assert words.startswith(RECIPE.prompt + "\nNegative prompt: dog\n") and f"seed: {2**40}" in words


def test_an_older_recipe_was_made_by_the_defaults(tmp_path: Path) -> None:
    chunks, path = PngImagePlugin.PngInfo(), tmp_path / "a.png"
    chunks.add_itxt(CHUNK, RECIPE.model_dump_json(exclude={"optimize", "low_memory", "approximate"}))
    picture().save(path, pnginfo=chunks)
    assert read_recipe(path) == RECIPE and (RECIPE.optimize, RECIPE.low_memory) == ("auto", False)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latentdiff.files.sync", full)
    with pytest.raises(InputError, match="No space left"):
        write_png(picture(), RECIPE, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_jpeg_by_another_name_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path, format="JPEG")
    with pytest.raises(InputError, match="no readable PNG"):
        read_recipe(path)


def test_a_text_chunk_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, " " * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    path = tmp_path / "a.png"
    picture().save(path, pnginfo=chunks)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError):
        read_recipe(path)


def test_a_picture_that_unpacks_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(picture(), RECIPE, path)
    monkeypatch.setattr(module, "MAX_PIXELS", 31)
    with pytest.raises(InputError, match="4x8, over 31 pixels"):
        read_recipe(path)


def test_recipes_with_one_lora_and_one_embedding_still_open() -> None:
    raw = RECIPE.model_dump(exclude={"loras", "embeddings"}) | {"lora": "a", "lora_scale": 0.5, "embedding": "b"}
    recipe = Recipe.model_validate(raw)
    assert recipe.loras == (("a", 0.5, 0.5),) and recipe.embeddings == ("b",)
    assert Recipe.model_validate(raw | {"lora": None, "embedding": None}).loras == ()
