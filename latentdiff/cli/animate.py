"""`latentdiff animate`: generate the frames between prompts or seeds, and write an animation; can be resumed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import latentdiff
from latentdiff.animation import animate, frame_count
from latentdiff.cli.finished_images import cached_path, check_cache, is_cached
from latentdiff.cli.open_pipeline import DEFAULT_OPTIONS, MODEL_NAMES, open_pipeline
from latentdiff.cli.progress import check_preview, preview_file
from latentdiff.cli.settings import DEFAULTS, call_arguments, sampled_size, with_model_defaults
from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent
from latentdiff.images.reading import read_images
from latentdiff.recipe import Recipe, read_recipe, write_image
from latentdiff.recipe.animations import check_animation, write_animation
from latentdiff.recipe.schema import AnimationRecipe
from latentdiff.sampling.seeds import seeds_per_image

FRAMES, FPS = 16, 12.0
NOT_SETTINGS = {"animation", "prompt", "seed", "model_hash", "hashes", "version"}


@dataclass(frozen=True)
class AnimationRequest:
    """The options of the command. given: those on the command line, with the names of `Recipe`."""

    output: Path
    prompts: list[str]
    seeds: list[int] | None
    frames: int | None
    fps: float | None
    batch_size: int
    device: str
    recipe: Path | None
    preview: Path | None
    given: dict[str, Any]


def parse_seeds(text: str) -> list[int]:
    """Parse `7` or `7,8,9`. Raises InputError."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"--seed {text}: write one whole number, or one per prompt, for example 7,8,9") from error


def run(request: AnimationRequest) -> None:
    """Generate the missing frames, and write the animation. Raises InputError."""
    old = None if request.recipe is None else _read(request.recipe)
    stored = old.animation if old else None
    frames = request.frames or (stored.frames if stored else FRAMES)
    fps = request.fps if request.fps is not None else stored.fps if stored and stored.fps else FPS
    prompts, seeds = _key_frames(request, stored)
    total = frame_count(len(prompts), frames)
    check_animation(request.output, fps)
    check_writable_parent(request.output)
    check_cache(request.output, "frames")
    check_preview(request.preview)
    settings = DEFAULTS | DEFAULT_OPTIONS | ({} if old is None else _settings(old)) | request.given
    opened = open_pipeline(request.device, settings)
    if old is not None and not request.given.keys() & MODEL_NAMES and old.model_hash != opened.same["model_hash"]:
        raise InputError(f"{request.recipe} was made with another model ({old.model_hash}); pass it with --model")
    settings = with_model_defaults(settings, opened.pipe)
    same = settings | opened.same | sampled_size(settings, opened.pipe) | {"version": latentdiff.__version__}
    animation = AnimationRecipe(prompts=tuple(prompts), seeds=tuple(seeds), frames=frames)

    def recipe(**changes: Any) -> Recipe:
        """The recipe of a frame, or of the animation."""
        own = animation.model_copy(update=changes)
        return Recipe.model_validate(same | {"prompt": prompts[0], "seed": seeds[0], "animation": own.model_dump()})

    paths = _make_frames(opened.pipe, [recipe(frame=index) for index in range(total)], settings, request)
    write_animation((read_images(path)[0] for path in paths), recipe(fps=fps), request.output, fps)
    print(request.output)


def _make_frames(
    pipe: Any, recipes: Sequence[Recipe], settings: dict[str, Any], request: AnimationRequest
) -> list[Path]:
    """Generate the missing frames; returns the files of all frames."""
    paths = [cached_path(request.output, "frames", recipe) for recipe in recipes]
    done = {index for index, path in enumerate(paths) if is_cached(path, recipes[index])}
    animation, preview = recipes[0].animation, preview_file(pipe, request.preview)
    assert animation is not None
    keys = animation.prompts, animation.seeds, animation.frames
    with tqdm(desc="frames", total=len(paths), initial=len(done), disable=None, file=sys.stderr) as bar:
        for index, image in animate(pipe, *keys, request.batch_size, done, preview, **call_arguments(settings)):
            if index not in done:
                paths[index].parent.mkdir(exist_ok=True)
                write_image(image, recipes[index], paths[index])
                bar.update()
    return paths


def _key_frames(request: AnimationRequest, stored: AnimationRecipe | None) -> tuple[list[str], list[int]]:
    """A prompt and a seed for each key frame; a single prompt is used with every seed."""
    prompts = request.prompts or list(stored.prompts if stored else ())
    seeds = request.seeds or list(stored.seeds if stored else ())
    if not prompts:
        raise InputError("there is no prompt; write two or more in quotes")
    if len(prompts) == 1:
        prompts = prompts * max(len(seeds), 1)
    one = None if not seeds else seeds[0] if len(seeds) == 1 else seeds
    return prompts, seeds_per_image(one, len(prompts))


def _read(path: Path) -> Recipe:
    recipe = read_recipe(path)
    if recipe.animation is None:
        raise InputError(f"{path} is not an animation; use latentdiff generate --recipe")
    return recipe


def _settings(recipe: Recipe) -> dict[str, Any]:
    names = recipe.model_dump(exclude_none=True).keys() - NOT_SETTINGS
    return {name: getattr(recipe, name) for name in names}
