"""`latentdiff generate`: from options, or the recipe in an image, to image files."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import latentdiff
from latentdiff.cli.editing import Editing, take_editing, take_hires
from latentdiff.cli.options import NAMES as OPEN_NAMES
from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent
from latentdiff.recipe import Found, Recipe, check_suffix, read_any, write_image

MODEL_NAMES = {"model", "loras", "embeddings", *OPEN_NAMES}
PIPELINE_NAMES = {"steps": "num_inference_steps"}
DEFAULT_OPTIONS: dict[str, Any] = {"optimize": "auto", "approximate": (), "low_memory": False}
UNDO = {"optimize": "--optimize auto", "approximate": '--approximate ""', "low_memory": "--no-low-memory"}
NOT_SETTINGS = ("prompt", "model_hash", "hashes", "version", "image_hash", "mask_hash")


@dataclass(frozen=True)
class Request:
    """The options. `given` holds those that were typed, under the names of `Recipe`."""

    output: Path
    prompts: list[str]
    num_images: int
    device: str
    recipe: Path | None
    given: dict[str, Any]
    image: Path | None = None
    mask: Path | None = None
    preview: Path | None = None
    preview_every: int = 5


@dataclass
class Opened:
    """A pipeline with its additions, and what the recipe says of them."""

    pipe: Any
    same: dict[str, Any] = field(default_factory=dict)


def run(request: Request) -> None:
    """Check everything that can be checked, then load the model, generate the images and write them."""
    found = read_any(request.recipe) if request.recipe else None
    prompts = request.prompts or ([found.settings["prompt"]] if found and found.settings.get("prompt") else [])
    if not prompts:
        raise InputError("no prompt was given; write one in quotes, or name an image with --recipe")
    if request.num_images < 1:
        raise InputError(f"--num-images {request.num_images} must be at least 1; try 1")
    paths = output_paths(request.output, len(prompts) * request.num_images)
    for path in [*paths, *([request.preview] if request.preview else [])]:
        check_writable_parent(path)
    settings = _settings(request, found)
    editing = take_editing(request.image, request.mask, settings, request.given, found)
    hires, hires_recipe = take_hires(settings)
    opened = open_pipeline(request.device, settings)
    if found and not request.given.keys() & MODEL_NAMES:
        _check_model(request, found, opened)
    usual = opened.pipe.generation.model_dump()
    settings = {"steps": usual.pop("num_inference_steps")} | usual | settings
    call = {PIPELINE_NAMES.get(key, key): value for key, value in settings.items()} | editing.arguments
    made = _generate(opened.pipe, prompts, request, call, hires)
    same = settings | editing.recipe | hires_recipe | opened.same | {"version": latentdiff.__version__}
    for k, (path, image, seed) in enumerate(zip(paths, made.images, made.seeds, strict=True)):
        size = _size(image, settings, editing, opened.pipe, hires)
        own = {"prompt": prompts[k // request.num_images], "seed": seed, **size}
        if made.variation_seeds:
            own["variation_seed"] = made.variation_seeds[k]
        write_image(image, Recipe.model_validate(same | own), path)
        print(path)


def _settings(request: Request, found: Found | None) -> dict[str, Any]:
    """What was typed, else what the recipe says, else defaults. Says on stderr what a recipe cannot give."""
    old = {} if found is None else {k: v for k, v in found.settings.items() if k not in NOT_SETTINGS}
    if found and found.dropped:
        print(f"not carried over from {found.program}: {', '.join(found.dropped)}", file=sys.stderr)
    if found and found.recipe is None and request.image is None and old.pop("strength", None) is not None:
        print("the image was made from another one; name that by --image to start from it", file=sys.stderr)
    if old.get("model") and "model" not in request.given and not Path(old["model"]).exists():
        raise InputError(f"{request.recipe} was made by {old['model']}, which is not here; name it by --model")
    usual = {"guidance_interval": (0.0, 1.0), "eta": 0.0, "prompt_syntax": "a1111"}
    settings: dict[str, Any] = usual | DEFAULT_OPTIONS | old | request.given
    _check_together(request, settings)
    return settings


def open_pipeline(device: str, settings: dict[str, Any]) -> Opened:
    """Open the model that settings name, and its additions; what belongs to these is taken out of the settings."""
    from latentdiff.checkpoints.lora_file import find_lora
    from latentdiff.checkpoints.textual_inversion import find_learned
    from latentdiff.model_hash import file_hash, hash_model
    from latentdiff.pipeline import LatentDiffusionPipeline

    model, dtype = settings.pop("model", None), settings.pop("dtype", "auto")
    options = {key: settings.pop(key) for key in DEFAULT_OPTIONS}
    how = {key: settings.pop(key, None) for key in OPEN_NAMES}
    allow_pickle = bool(how.pop("allow_pickle"))
    pipe = LatentDiffusionPipeline.from_pretrained(model, device, dtype, **options, **how, allow_pickle=allow_pickle)
    loras, embeddings = settings.pop("loras", ()), settings.pop("embeddings", ())
    for file, *weights in loras:
        name = Path(file).stem  # as prompts name it
        name = name if name not in pipe.adapters else f"{name}-{len(pipe.adapters)}"
        pipe.load_lora(file, name, (weights[0], weights[1]), allow_pickle)
    for embedding in embeddings:
        words = pipe.load_textual_inversion(embedding, allow_pickle)
        print(f"{embedding} teaches {', '.join(words)}", file=sys.stderr)
    assert pipe.source is not None
    lora_files = [find_lora(Path(file)) for file, *_ in loras]
    additions = [*lora_files, *(find_learned(Path(file)) for file in embeddings)]
    hashes = {} if pipe.source.path.is_dir() else {"model": file_hash(pipe.source.path)[:10]}
    hashes |= {f"lora:{path.stem}": file_hash(path)[:10] for path in lora_files}
    same = {"dtype": str(pipe.dtype).removeprefix("torch."), "model": model, "hashes": hashes, **how}
    same |= {"model_hash": hash_model(pipe.source, *additions), "loras": loras, "embeddings": embeddings}
    same |= {key: getattr(pipe.options, key) for key in DEFAULT_OPTIONS}
    return Opened(pipe, same)


def _check_model(request: Request, found: Found, opened: Opened) -> None:
    """Raise InputError unless the model is that of our recipe."""
    from latentdiff.checkpoints.lora_file import find_lora
    from latentdiff.checkpoints.textual_inversion import find_learned
    from latentdiff.model_hash import hash_before_0_2

    if found.recipe is None or found.recipe.model_hash == opened.same["model_hash"]:
        return
    additions = [find_lora(Path(file)) for file, *_ in opened.same["loras"]]
    additions += [find_learned(Path(file)) for file in opened.same["embeddings"]]
    if found.recipe.model_hash != hash_before_0_2(opened.pipe.source.path, *additions):
        raise InputError(
            f"{request.recipe} was made by model {found.recipe.model_hash}, {opened.same['model'] or 'bundled'} is "
            f"{opened.same['model_hash']}; name the model by --model"
        )


def _generate(pipe: Any, prompts: list[str], request: Request, call: dict[str, Any], hires: Any) -> Any:
    """The output of the pipeline, called twice where there is a second pass."""
    from latentdiff.cli.progress import PreviewFile, Progress
    from latentdiff.hires import generate_hires
    from latentdiff.runtime.memory import peak_memory

    run_pipe = pipe if hires is None else partial(generate_hires, pipe, hires)
    with tqdm(desc="sampling", disable=None, file=sys.stderr) as bar:
        preview = PreviewFile(request.preview, request.preview_every, pipe) if request.preview else None
        callback = Progress(bar, preview)
        made = run_pipe(prompt=prompts, num_images_per_prompt=request.num_images, callback=callback, **call)
        bar.set_postfix(memory=f"{peak_memory(pipe.device) / 2**30:.1f}G")
    return made


def _size(image: Any, settings: dict[str, Any], editing: Editing, pipe: Any, hires: Any) -> dict[str, int]:
    """The size that the recipe states: the image's, with only_masked the crop's, with hires that of the first pass."""
    if editing.recipe.get("only_masked") is not None or (hires is not None and not editing.arguments):
        return {side: settings.get(side) or pipe.default_size for side in ("height", "width")}
    scale = 1 if hires is None else hires.scale
    return {"height": round(image.height / scale), "width": round(image.width / scale)}


def _check_together(request: Request, settings: dict[str, Any]) -> None:
    """Raise InputError for what does not go together; where a recipe holds half of it, say what undoes that."""
    from latentdiff.runtime.options import choose_options

    def check(asked: dict[str, Any]) -> None:
        choose_options(**{key: asked.get(key, value) for key, value in DEFAULT_OPTIONS.items()})
        added = [key.removesuffix("s") for key in ("loras", "embeddings") if asked.get(key)]
        if added and asked.get("low_memory"):
            raise InputError(
                f"--low-memory does not go with --{added[0]}, which changes weights; leave one of them out"
            )

    check(request.given)
    try:
        check(settings)
    except InputError as error:
        held = [key for key, value in DEFAULT_OPTIONS.items() if settings[key] != value and key not in request.given]
        if not held:
            raise
        undo = " ".join(UNDO[key] for key in held)
        raise InputError(f"{error}; {undo} undoes what {request.recipe} holds") from error


def output_paths(output: Path, count: int) -> list[Path]:
    """`apple.png` for one image, `apple-1.png`, `apple-2.png`, … for several. Raises InputError for other formats."""
    check_suffix(output)
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{k}{output.suffix}") for k in range(1, count + 1)]
