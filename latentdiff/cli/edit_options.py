"""The options of `generate` for an input image and for a second pass."""

import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError
from latentdiff.images.fit import EDGES
from latentdiff.recipe import StoredRecipe

OPTION_NAMES = (
    "fit", "extend", "mask_grow", "mask_blur", "mask_fill", "only_masked", "paste_back", "image_guidance_scale",
)  # fmt: skip
"""Fields of `images.edit.EditOptions`; `Recipe` has the same names."""
CALL_NAMES = ("strength", "source_prompt")
"""Arguments of the pipeline's call with the same names."""
EDIT_NAMES = (*OPTION_NAMES, *CALL_NAMES)
INVERTED = "ddim"
MASK_NAMES = ("mask_grow", "mask_blur", "mask_fill", "only_masked", "paste_back")
HIRES_NAMES = ("hires", "hires_strength", "hires_steps", "upscaler")


@dataclass(frozen=True)
class Editing:
    """An input image and its options. arguments: of the pipeline's call. recipe: entries of the recipe."""

    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


def parse_extend(text: str) -> dict[str, int]:
    """Parse `left=64,top=32` to pixels by edge. Raises InputError."""
    edges: dict[str, int] = {}
    for word in filter(None, text.replace(" ", "").split(",")):
        edge, _, number = word.partition("=")
        if edge not in EDGES or edge in edges or not number.isdecimal():
            raise InputError(f"--extend {text}: write the pixels of each edge once, for example left=64,top=32")
        edges[edge] = int(number)
    if not edges:
        raise InputError("--extend is empty; write the pixels of each edge, for example left=64,top=32")
    return edges


def take_editing(
    image: Path | None, mask: Path | None, settings: dict[str, Any], given: dict[str, Any], found: StoredRecipe | None
) -> Editing:
    """Remove the editing options from the settings, and read the input files. Raises InputError."""
    from latentdiff.images.edit import EditOptions
    from latentdiff.images.reading import read_images, read_masks

    chosen = {name: value for name in EDIT_NAMES if (value := settings.pop(name, None)) is not None}
    old = {} if found is None else found.settings
    if image is None:
        if used := [name for name in EDIT_NAMES if name in given] + ["mask"] * (mask is not None):
            raise InputError(f"--{used[0].replace('_', '-')} requires an input image; pass it with --image")
        if "image_hash" in old:
            raise InputError(
                "the recipe is that of an edited image and does not contain the input; pass it with --image"
            )
        return Editing()
    if mask is None and "mask_hash" in old and not chosen.get("extend"):
        raise InputError("the recipe is that of an inpainted image and does not contain the mask; pass it with --mask")
    if mask is None and not chosen.get("extend") and (used := [name for name in MASK_NAMES if name in given]):
        option = used[0].replace("_", "-").replace("paste-back", "no-paste-back")
        raise InputError(f"--{option} requires a mask; pass it with --mask, or use --extend")
    files = {"image": image, "mask": mask}
    hashes = {f"{name}_hash": _hash(path) for name, path in files.items() if path is not None}
    for name, value in hashes.items():
        if name in old and old[name] != value:
            other = name.removesuffix("_hash")
            print(f"warning: the recipe was made with a different {other} ({old[name]}, not {value})", file=sys.stderr)
    called = {name: chosen.pop(name) for name in CALL_NAMES if name in chosen}
    if "source_prompt" in called:
        settings.setdefault("sampler", INVERTED)  # rather than the model's
    arguments: dict[str, Any] = {"image": read_images(str(image)), "edit": EditOptions(**chosen)} | called
    if mask is not None:
        arguments["mask_image"] = read_masks(str(mask))
    return Editing(arguments, chosen | hashes | called)


def take_hires(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Remove the options of a second pass from the settings; returns a `Hires` or None, and its recipe entries."""
    from latentdiff.hires import Hires

    chosen = {name: value for name in HIRES_NAMES if (value := settings.pop(name, None)) is not None}
    if "hires" not in chosen:
        if chosen:
            raise InputError(f"--{next(iter(chosen)).replace('_', '-')} requires a second pass; add --hires 2")
        return None, {}
    options = {name.removeprefix("hires_"): value for name, value in chosen.items() if name != "hires"}
    hires = Hires(chosen["hires"], **options, allow_pickle=bool(settings.get("allow_pickle")))
    return hires, chosen | {"hires_strength": hires.strength}


def _hash(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error
