"""Generate the images of one command batch by batch, and write each with its recipe."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

import latentdiff
from latentdiff.cli.edit_options import Editing
from latentdiff.cli.image_plan import OF_EACH, PlannedImage
from latentdiff.cli.open_pipeline import Opened
from latentdiff.cli.settings import SIDES, call_arguments, sampled_size
from latentdiff.errors import InputError, LatentDiffError, shorten
from latentdiff.recipe import Recipe, read_recipe, write_image
from latentdiff.safety import ContentChecker
from latentdiff.sampling.loop import Callback

DONE = {"flag": "flagged", "blur": "blurred", "refuse": "refused"}


@dataclass(frozen=True)
class ImageGenerator:
    """A pipeline and everything that all images share. settings: of the call, with the names of `Recipe`."""

    opened: Opened
    settings: dict[str, Any]
    editing: Editing
    hires: Any
    hires_recipe: dict[str, Any]
    checker: ContentChecker | None = None

    def generate(self, batch: Sequence[PlannedImage], callback: Callback | None) -> list[Image.Image]:
        """Generate the images of a batch, with second pass or refiner if any. Errors name the line of the prompt."""
        from latentdiff.hires import generate_hires
        from latentdiff.refiner import generate_refined

        pipe, refiner = self.opened.pipe, self.opened.refiner
        run: Callable[..., Any] = pipe if self.hires is None else partial(generate_hires, pipe, self.hires)
        if refiner is not None:
            run = partial(generate_refined, pipe, refiner, self.opened.same["refiner_switch"])
        try:
            images: list[Image.Image] = run(**self._arguments(batch), callback=callback).images
        except LatentDiffError as error:
            raise type(error)(f"{batch[0].place}{error}") from error
        return images

    def write(self, item: PlannedImage, image: Image.Image) -> bool:
        """Write an image with its recipe and print its path; returns False if the content checker refuses it."""
        checked = None if self.checker is None else self.checker([image])[0]
        found: dict[str, Any] = {}
        if self.checker is not None and checked is not None:
            found = {"safety": self.checker.action, "safety_score": checked.score, "flagged": checked.flagged}
            if checked.flagged:
                done = DONE[self.checker.action]
                print(f"warning: the content checker {done} {item.path} ({checked.score:.2f})", file=sys.stderr)
            if checked.image is None:
                return False
            image = checked.image
        write_image(image, self.recipe(item, image, found), item.path)
        print(item.path, flush=True)
        return True

    def check(self, batch: Sequence[PlannedImage]) -> None:
        """Raise InputError, naming the line, for arguments that the pipeline would refuse."""
        from latentdiff.inputs import read_inputs
        from latentdiff.inputs.size_conditioning import SCORES, SIZE_NAMES

        pipe = self.opened.pipe
        arguments = self._arguments(batch)
        sizes = {name: arguments.pop(name) for name in SIZE_NAMES if name in arguments}
        if self.opened.refiner is not None:
            sizes = {name: value for name, value in sizes.items() if name not in SCORES}
        try:
            inputs = read_inputs(pipe.limits, **arguments, sizes=sizes)
            pipe.check_loaded(inputs.prompts.loras)
        except LatentDiffError as error:
            if len(batch) > 1:
                for item in batch:
                    self.check([item])
            raise InputError(f"{batch[0].place}{error}") from error

    def exists(self, item: PlannedImage) -> bool:
        """Whether the file of this image exists. Raises InputError if it has a different recipe, or none."""
        if not item.path.exists():
            return False
        found, wanted = read_recipe(item.path).model_dump(), self.recipe(item).model_dump()
        ignored = {"version", "safety_score", "flagged"} | set(SIDES if self.editing.arguments else ())
        for name in sorted(wanted.keys() - ignored):
            if found[name] != wanted[name]:
                raise InputError(
                    f"{item.path} exists and was made with {name}={shorten(found[name])}, not "
                    f"{shorten(wanted[name])}; remove it, or choose another output with -o"
                )
        return True

    def recipe(
        self, item: PlannedImage, image: Image.Image | None = None, found: dict[str, Any] | None = None
    ) -> Recipe:
        """The recipe of an image, or if None of a file that is still to be written, as far as its size is known.

        found: the result of the content checker.
        """
        settings = self.settings | item.settings
        same = settings | self.editing.recipe | self.hires_recipe | self.opened.same
        own = {"prompt": item.prompt, "version": latentdiff.__version__}
        own |= found or ({} if self.checker is None else {"safety": self.checker.action})
        return Recipe.model_validate(same | own | self._size(settings, image))

    def _arguments(self, batch: Sequence[PlannedImage]) -> dict[str, Any]:
        """The arguments of the pipeline's call; images of a batch differ only in texts and seeds."""
        settings = [self.settings | item.settings for item in batch]
        call = call_arguments(settings[0])
        for name in OF_EACH:
            if call.get(name) is not None:
                call[name] = [own[name] for own in settings]
        return call | self.editing.arguments | {"prompt": [item.prompt for item in batch]}

    def _size(self, settings: dict[str, Any], image: Image.Image | None) -> dict[str, int]:
        """The size in the recipe: the image's, with only_masked the crop's, and with hires that of the first pass."""
        from_settings = not self.editing.arguments or self.editing.recipe.get("only_masked") is not None
        if from_settings or image is None:
            return sampled_size(settings, self.opened.pipe)
        scale = 1 if self.hires is None else self.hires.scale
        return {"height": round(image.height / scale), "width": round(image.width / scale)}
