"""The web page, and the recipes of files that are dropped on it."""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field

from latentdiff.checkpoints.textual_inversion import find_learned
from latentdiff.errors import InputError
from latentdiff.images.edit import EditOptions
from latentdiff.recipe.reading import StoredRecipe, read_any
from latentdiff.recipe.schema import LoraUse
from latentdiff.serving.api.route import Router
from latentdiff.serving.encoding import opening_of
from latentdiff.serving.errors import without_folders
from latentdiff.serving.server_state import Server, server_of
from latentdiff.serving.uploads import from_base64

router = Router(tags=["page"])
Here = Annotated[Server, Depends(server_of)]
FOLDER = Path(__file__).parents[1] / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@router.head("/", include_in_schema=False)
@router.get("/", response_class=Response)
async def index(http: Request, server: Here) -> Response:
    """The page for browsers; for other clients, the response of Draw Things."""
    if "text/html" not in http.headers.get("accept", ""):
        return JSONResponse({"model": server.a1111_model, "upscaler": None})
    return _file(FILES["index.html"])


@router.get("/train", response_class=Response)
async def train() -> Response:
    """The page for fine-tuning."""
    return _file(FILES["train.html"])


@router.get("/page/{name}", response_class=Response, include_in_schema=False)
async def page_file(name: str) -> Response:
    """A file of the page."""
    return _file(FILES[name]) if name in FILES else Response(status_code=404)


def _file(path: Path) -> FileResponse:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=TYPES[path.suffix], headers=headers)


class ImageFile(BaseModel):
    """A file as base64."""

    image: str = Field(description="With or without a data: prefix.")


CARRIED = (  # fields of a job request that a recipe has too
    "prompt", "negative_prompt", "seed", "sampler", "steps", "guidance_scale", "width", "height", "spacing", "eta",
    "guidance_interval", "prompt_2", "negative_prompt_2", "prompt_syntax", "clip_skip", "tile", "seamless", "hires",
    "hires_strength", "hires_steps", "upscaler", "variation_seed", "variation_strength",
)  # fmt: skip
UNCHANGED = asdict(EditOptions()) | {"approximate": (), "embeddings": ()}
INPUTS = {"image_hash": "image", "mask_hash": "mask"}  # not stored in files
ABOUT = (  # how an image was computed, and by which version; `model` and `loras` are separate fields
    "model", "loras", "dtype", "optimize", "low_memory", "model_hash", "refiner_hash", "hashes", "version", "safety",
    "safety_score", "flagged",
)  # fmt: skip


@router.post("/recipe")
async def recipe(body: ImageFile, server: Here) -> dict[str, Any]:
    """The settings stored in an image file by latentdiff, A1111 or ComfyUI, with the field names of a job request.

    `dropped` lists the settings without such a field. `model` may be one that this server does not have.
    """
    found = await asyncio.to_thread(_read, from_base64(body.image, "image"))
    settings = {name: found.settings[name] for name in CARRIED if found.settings.get(name) is not None}
    if "upscaler" in settings:
        settings["upscaler"] = Path(settings["upscaler"]).stem
    loras, unknown = _loras(server, found.settings.get("loras", ()))
    model = _model(server, found)
    dropped = [text for text in found.dropped if not text.startswith("Model")]
    return {
        "program": found.program,
        "dropped": [*dropped, *_others(server, model, found.settings), *unknown],
        "settings": settings | {"loras": loras, "model": model},
    }


def _others(server: Server, model: str | None, settings: dict[str, Any]) -> Iterator[str]:
    """The settings that are not carried over, except those that apply to every image of the model on this server."""
    spec = server.engine.models.specs.get(model or "")
    same = UNCHANGED | (opening_of(spec) if spec else {})
    learned = {find_learned(path).name for path in server.engine.models.embeddings}
    for name, value in settings.items():
        if name in (*CARRIED, *ABOUT):
            continue
        if name == "embeddings":
            value = tuple(file for path in value if (file := Path(path).name) not in learned)
        if name in INPUTS:
            yield INPUTS[name]
        elif value != same.get(name):
            yield f"{name}: {_shown(value)}"


def _shown(value: Any) -> str:
    """A setting as text; paths are reduced to file names."""
    return without_folders(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _model(server: Server, found: StoredRecipe) -> str | None:
    """The name in requests of a recipe's model; if the server does not have it, the name in the recipe."""
    specs = server.engine.models.specs.values()
    if found.recipe is None:
        return next((text.removeprefix("Model: ") for text in found.dropped if text.startswith("Model: ")), None)
    if (path := found.recipe.model) is None:
        return next((spec.name for spec in specs if spec.path is None), "emoji")
    names = {path, Path(path).name}
    return next((s.name for s in specs if s.path and names & {s.path, Path(s.path).name}), Path(path).stem)


def _loras(server: Server, used: Iterable[LoraUse]) -> tuple[dict[str, list[float]], list[str]]:
    """Weights by the name in requests, and the LoRAs that this server does not have."""
    known = {spec.path.name: name for name, spec in server.engine.models.loras.items()}
    known |= {name: name for name in server.engine.models.loras}
    found, unknown = {}, []
    for path, *weights in used:
        if (name := known.get(Path(path).name) or known.get(Path(path).stem)) is None:
            unknown.append(f"LoRA: {Path(path).stem}")
        else:
            found[name] = list(weights)
    return found, unknown


def _read(data: bytes) -> StoredRecipe:
    with tempfile.NamedTemporaryFile(prefix="latentdiff-") as file:
        file.write(data)
        file.flush()
        try:
            return read_any(Path(file.name))
        except InputError as error:
            raise InputError(str(error).replace(file.name, "the file")) from error
