"""`latentdiff generate`: read the options and an optional recipe, generate images, and write their files."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from latentdiff.cli.edit_options import take_editing, take_hires
from latentdiff.cli.expansion import read_expansion, warn_of_syntax
from latentdiff.cli.image_generator import ImageGenerator
from latentdiff.cli.image_plan import PlannedImage, batches, images_of_lines, images_of_prompts, makes_folder
from latentdiff.cli.launch import check_devices, local_device
from latentdiff.cli.open_pipeline import DEFAULT_OPTIONS, MODEL_NAMES, Opened, open_pipeline
from latentdiff.cli.progress import Progress, check_preview, preview_file
from latentdiff.cli.prompts_file import read_prompts_file
from latentdiff.cli.prompts_run import generate_missing
from latentdiff.cli.refiner_options import Refining, take_refiner
from latentdiff.cli.request import Request
from latentdiff.cli.settings import DEFAULTS, with_model_defaults
from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent
from latentdiff.recipe import StoredRecipe, read_any
from latentdiff.safety import ContentChecker

UNDO = {"optimize": "--optimize auto", "approximate": '--approximate ""', "low_memory": "--no-low-memory"}
NOT_SETTINGS = (
    "prompt", "model_hash", "hashes", "version", "image_hash", "mask_hash", "refiner_hash", "safety", "safety_score",
    "flagged",
)  # fmt: skip


def run(request: Request) -> None:
    """Validate the request, load the model, generate the images and write them. Raises InputError."""
    found = read_any(request.recipe) if request.recipe else None
    if request.num_images < 1:
        raise InputError(f"--num-images {request.num_images} must be at least 1; try 1")
    settings = _settings(request, found)
    planned = _planned_images(request, settings, found)
    _check_outputs(request, planned)
    editing = take_editing(request.image, request.mask, settings, request.given, found)
    hires, hires_recipe = take_hires(settings)
    refining = take_refiner(settings, hires)
    checker = None if request.safety is None else ContentChecker(request.safety)
    opened = _open(request, settings, refining, found)
    settings = with_model_defaults(settings, opened.pipe)
    generator = ImageGenerator(opened, settings, editing, hires, hires_recipe, checker)
    generate = _generate_all if request.prompts_file is None else generate_missing
    if refused := generate(generator, planned, request):
        raise InputError(
            f"{refused} of {len(planned)} images were refused by the content checker and not written; "
            "change the prompt or the seed, or use --safety blur"
        )


def _open(request: Request, settings: dict[str, Any], refining: Refining | None, found: StoredRecipe | None) -> Opened:
    """Open the model and the refiner, if any. Raises InputError for models that do not match options or recipe."""
    opened = open_pipeline(local_device(request.device), settings)
    if (scale := request.given.get("image_guidance_scale")) is not None and opened.pipe.task != "edit":
        raise InputError(f"--image-guidance-scale {scale:g} is for InstructPix2Pix models; pass one with --model")
    if found and not request.given.keys() & MODEL_NAMES:
        _check_model(request, found, opened)
    if found and found.recipe is None and "spacing" not in request.given:
        _drop_spacing(settings, opened, found.program)
    if refining is not None:
        old = None if found is None or "refiner" in request.given else found.recipe
        opened.refiner = refining.open(opened.pipe, opened.same)
        opened.same |= refining.recipe(opened.refiner, old)
    return opened


def _drop_spacing(settings: dict[str, Any], opened: Opened, program: str) -> None:
    """Use the model's spacing instead of one from another program that cannot be used with this model."""
    from latentdiff.sampling.spacings import SIGMA_GRIDS

    if settings.get("spacing") in SIGMA_GRIDS and not opened.pipe.schedule.has_sigma_range:
        spacing = settings.pop("spacing")
        print(f"not carried over from {program}: spacing {spacing}, which this model cannot use", file=sys.stderr)


def _planned_images(request: Request, settings: dict[str, Any], found: StoredRecipe | None) -> list[PlannedImage]:
    expansion = read_expansion(request.expand, request.wildcards)
    common = request.num_images, settings, expansion
    if request.prompts_file is not None:
        if request.prompts:
            raise InputError(f"the prompt {request.prompts[0]!r} cannot be combined with --prompts; omit one of them")
        lines = read_prompts_file(request.prompts_file)
        planned = images_of_lines(request.output, lines, *common, request.prompts_file)
    else:
        if request.num_processes is not None:
            raise InputError(f"--num-processes {request.num_processes} requires --prompts FILE; omit it")
        prompts = request.prompts or ([found.settings["prompt"]] if found and found.settings.get("prompt") else [])
        if not prompts:
            raise InputError("there is no prompt; write one in quotes, or pass --prompts FILE or --recipe FILE")
        planned = images_of_prompts(request.output, prompts, *common)
    if expansion.wildcards is None and request.recipe is None:
        warn_of_syntax(item.prompt for item in planned)
    return planned


def _check_outputs(request: Request, planned: list[PlannedImage]) -> None:
    if request.prompts_file is not None and makes_folder(request.output):
        if not request.output.is_dir():
            check_writable_parent(request.output)
        if request.output.exists() and not request.output.is_dir():
            raise InputError(f"-o {request.output} is a file; pass a folder, or a name that ends in .png")
    else:
        for item in planned:
            check_writable_parent(item.path)
    check_preview(request.preview, request.preview_every)
    for option, path in (("--image", request.image), ("--mask", request.mask), ("--recipe", request.recipe)):
        if request.preview and path and request.preview.resolve() == path.resolve():
            raise InputError(f"--preview {request.preview} would overwrite the file of {option}; choose another name")
    if request.preview and request.safety in ("blur", "refuse"):
        raise InputError(f"--preview shows images before --safety {request.safety} checks them; omit one of them")
    if request.num_processes:
        check_devices(request.num_processes)


def _generate_all(generator: ImageGenerator, planned: list[PlannedImage], request: Request) -> int:
    """Generate and write the images; returns how many the content checker refused."""
    from latentdiff.runtime.memory import peak_memory

    with tqdm(desc="sampling", disable=None, file=sys.stderr) as bar:
        preview = preview_file(generator.opened.pipe, request.preview, request.preview_every)
        groups = batches(planned, generator.settings, request.batch_size or len(planned))
        for batch in groups[1:]:  # before the first is generated
            generator.check(batch)
        refused = 0
        for batch in groups:
            images = generator.generate(batch, Progress(bar, preview))
            refused += sum(not generator.write(*pair) for pair in zip(batch, images, strict=True))
        bar.set_postfix(memory=f"{peak_memory(generator.opened.pipe.device) / 2**30:.1f}G")
    return refused


def _settings(request: Request, found: StoredRecipe | None) -> dict[str, Any]:
    """The settings: command line, then recipe, then defaults. Prints the settings of a recipe that cannot be used."""
    if found and "animation" in found.settings:
        raise InputError(f"{request.recipe} is an animation or a frame of one; use latentdiff animate --recipe")
    old = {} if found is None else {k: v for k, v in found.settings.items() if k not in NOT_SETTINGS}
    if found and found.dropped:
        print(f"not carried over from {found.program}: {', '.join(found.dropped)}", file=sys.stderr)
    if found and found.recipe is None and request.image is None and old.pop("strength", None) is not None:
        print("the image was made from an input image; pass that with --image to use it", file=sys.stderr)
    for name in ("model", "vae", "unet", "refiner"):  # a recipe from an unknown source must not start a download
        if old.get(name) and name not in request.given and not Path(old[name]).exists():
            raise InputError(
                f"{request.recipe} was made with {old[name]}, which does not exist here; pass its path with --{name}"
            )
    settings: dict[str, Any] = DEFAULTS | DEFAULT_OPTIONS | old | request.given
    _check_together(request, settings)
    return settings


def _check_model(request: Request, found: StoredRecipe, opened: Opened) -> None:
    """Raise InputError if the recipe has the hash of another model."""
    from latentdiff.checkpoints.lora_reader import find_lora
    from latentdiff.checkpoints.textual_inversion import find_learned
    from latentdiff.recipe.model_hash import first_hash

    if found.recipe is None or found.recipe.model_hash == opened.same["model_hash"]:
        return
    additions = [find_lora(Path(file)) for file, *_ in opened.same["loras"]]
    additions += [find_learned(Path(file)) for file in opened.same["embeddings"]]
    if found.recipe.model_hash != first_hash(opened.pipe.source.path, *additions):
        raise InputError(
            f"{request.recipe} was made with model {found.recipe.model_hash}, {opened.same['model'] or 'bundled'} is "
            f"{opened.same['model_hash']}; pass the model with --model"
        )


def _check_together(request: Request, settings: dict[str, Any]) -> None:
    """Raise InputError for options that exclude each other, also if one of them is from the recipe."""
    from latentdiff.runtime.options import choose_options

    def check(values: dict[str, Any]) -> None:
        choose_options(**{key: values.get(key, value) for key, value in DEFAULT_OPTIONS.items()})
        added = [key.removesuffix("s") for key in ("loras", "embeddings") if values.get(key)]
        if added and values.get("low_memory"):
            raise InputError(
                f"--low-memory cannot be combined with --{added[0]}, which changes weights; omit one of them"
            )

    check(request.given)
    try:
        check(settings)
    except InputError as error:
        held = [key for key, value in DEFAULT_OPTIONS.items() if settings[key] != value and key not in request.given]
        if not held:
            raise
        undo = " ".join(UNDO[key] for key in held)
        raise InputError(f"{error}; {undo} overrides the setting of {request.recipe}") from error
