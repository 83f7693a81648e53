"""The web page, and the recipes of files that are dropped on it."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field

from latentdiff.errors import InputError
from latentdiff.recipe.reading import read_any
from latentdiff.serving.server import Server, server_of
from latentdiff.serving.uploads import from_base64

router = APIRouter(tags=["page"])
Here = Annotated[Server, Depends(server_of)]
FOLDER = Path(__file__).parents[1] / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@router.head("/", include_in_schema=False)
@router.get("/", response_class=Response)
async def index(http: Request, server: Here) -> Response:
    """The page for browsers; for programs, what Draw Things answers."""
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


@router.post("/recipe")
async def recipe(body: ImageFile) -> dict[str, Any]:
    """The settings stored in an image file by latentdiff, A1111 or ComfyUI, under the names of a job request."""
    found = await asyncio.to_thread(_read, from_base64(body.image, "image"))
    names = ("prompt", "negative_prompt", "seed", "sampler", "steps", "guidance_scale", "width", "height", "spacing")
    settings = {name: found.settings[name] for name in names if found.settings.get(name) is not None}
    return {
        "program": found.program,
        "dropped": found.dropped,
        "settings": settings | {"model": _model(found.settings)},
    }


def _model(settings: dict[str, Any]) -> str | None:
    return None if settings.get("model") is None else Path(str(settings["model"])).stem


def _read(data: bytes) -> Any:
    with tempfile.NamedTemporaryFile(prefix="latentdiff-") as file:
        file.write(data)
        file.flush()
        try:
            return read_any(Path(file.name))
        except InputError as error:
            raise InputError(str(error).replace(file.name, "the file")) from error
