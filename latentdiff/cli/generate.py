"""`latentdiff generate`: from options, or a picture's own recipe, to PNG files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import latentdiff
from latentdiff.cli.options import NAMES as OPEN_NAMES
from latentdiff.errors import InputError
from latentdiff.files import check_writable_parent
from latentdiff.recipe import Recipe, read_recipe, write_png

MODEL_NAMES = {"model", "loras", "embeddings", *OPEN_NAMES}
PIPELINE_NAMES = {"steps": "num_inference_steps"}
DEFAULT_OPTIONS: dict[str, Any] = {"optimize": "auto", "approximate": (), "low_memory": False}
UNDO = {"optimize": "--optimize auto", "approximate": '--approximate ""', "low_memory": "--no-low-memory"}


@dataclass(frozen=True)
class Request:
    """What was typed. `given` holds only the options that were; names as in `Recipe`."""

    output: Path
    prompts: list[str]
    num_images: int
    device: str
    from_image: Path | None
    given: dict[str, Any]


def run(request: Request) -> None:
    """Check everything that can be checked, then load the model, make the pictures and write them."""
    recipe = read_recipe(request.from_image) if request.from_image else None
    prompts = request.prompts or ([recipe.prompt] if recipe else [])
    if not prompts:
        raise InputError("no prompt was given; write one in quotes, or name a picture with --from-image")
    if request.num_images < 1:
        raise InputError(f"--num-images {request.num_images} must be at least 1; try 1")
    paths = output_paths(request.output, len(prompts) * request.num_images)
    for path in paths:
        check_writable_parent(path)
    old = {} if recipe is None else recipe.model_dump(exclude={"prompt", "model_hash", "version"}, exclude_none=True)

    from latentdiff.checkpoints.lora_file import find_lora
    from latentdiff.checkpoints.textual_inversion import find_learned
    from latentdiff.model_hash import hash_before_0_2, hash_model
    from latentdiff.pipeline import LatentDiffusionPipeline
    from latentdiff.runtime.memory import peak_memory

    if recipe and recipe.model and "model" not in request.given and not Path(recipe.model).exists():
        raise InputError(f"{request.from_image} was made by {recipe.model}, which is not here; name it by --model")
    settings: dict[str, Any] = {"guidance_interval": (0.0, 1.0), "eta": 0.0} | DEFAULT_OPTIONS | old | request.given
    _check_together(request, settings)
    model, dtype = settings.pop("model", None), settings.pop("dtype", "auto")
    options = {key: settings.pop(key) for key in DEFAULT_OPTIONS}
    how = {key: settings.pop(key, None) for key in OPEN_NAMES}
    allow_pickle = bool(how.pop("allow_pickle"))
    pipe = LatentDiffusionPipeline.from_pretrained(
        model, request.device, dtype, **options, **how, allow_pickle=allow_pickle
    )
    usual = pipe.generation.model_dump()
    settings = {"steps": usual.pop("num_inference_steps")} | usual | settings
    loras, embeddings = settings.pop("loras", ()), settings.pop("embeddings", ())
    for k, (file, *weights) in enumerate(loras):
        pipe.load_lora(file, f"{k}: {file}", (weights[0], weights[1]), allow_pickle)
    for embedding in embeddings:
        words = pipe.load_textual_inversion(embedding, allow_pickle)
        print(f"{embedding} teaches {', '.join(words)}", file=sys.stderr)
    assert pipe.source is not None
    additions = [find_lora(Path(file)) for file, *_ in loras] + [find_learned(Path(file)) for file in embeddings]
    model_hash = hash_model(pipe.source, *additions)
    if (
        recipe
        and not request.given.keys() & MODEL_NAMES
        and recipe.model_hash not in (model_hash, hash_before_0_2(pipe.source.path, *additions))
    ):
        raise InputError(
            f"{request.from_image} was made by model {recipe.model_hash}, {model or 'bundled'} is {model_hash}; "
            "name the model by --model"
        )
    call = {PIPELINE_NAMES.get(key, key): value for key, value in settings.items()}
    with tqdm(desc="sampling", disable=None, file=sys.stderr) as bar:
        made = pipe(prompts, num_images_per_prompt=request.num_images, callback=_Progress(bar), **call)
        bar.set_postfix(memory=f"{peak_memory(pipe.device) / 2**30:.1f}G")
    same = settings | {"dtype": str(pipe.dtype).removeprefix("torch."), "model": model, "model_hash": model_hash}
    same |= {"loras": loras, "embeddings": embeddings, **how}
    same |= {key: getattr(pipe.options, key) for key in DEFAULT_OPTIONS}
    for k, (path, image, seed) in enumerate(zip(paths, made.images, made.seeds, strict=True)):
        own = {"prompt": prompts[k // request.num_images], "seed": seed, "height": image.height, "width": image.width}
        write_png(image, Recipe.model_validate(same | own | {"version": latentdiff.__version__}), path)
        print(path)


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
        raise InputError(f"{error}; {undo} undoes what {request.from_image} holds") from error


def output_paths(output: Path, count: int) -> list[Path]:
    """`apple.png` for one picture, `apple-1.png`, `apple-2.png`, … for several. Raises InputError unless a PNG."""
    if output.suffix.lower() != ".png":
        raise InputError(f"-o {output} must end in .png, the format that keeps the recipe; try {output.stem}.png")
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{k}{output.suffix}") for k in range(1, count + 1)]


class _Progress:
    """Moves a bar by the pipeline's steps."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, info: Any) -> None:
        self.bar.total = info.steps
        self.bar.update(info.step - self.bar.n)
