"""Fine-tuning from the web page: pictures, captions, data check, training, samples, and use of the new LoRA.

Disabled unless the server was started with `--train FOLDER`, from which pictures can be copied.
"""

import asyncio
import shutil
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from latentdiff.serving.api.route import Router
from latentdiff.serving.errors import NotFoundError
from latentdiff.serving.finetunes import pictures, process, progress
from latentdiff.serving.finetunes.folder import ConflictError, FineTune, FineTunes
from latentdiff.serving.finetunes.process import CHECK, SETTINGS, Settings
from latentdiff.serving.models import LoraSpec, ModelSpec
from latentdiff.serving.server_state import Server, server_of

router = Router(prefix="/finetunes", tags=["fine-tuning"])
Here = Annotated[Server, Depends(server_of)]


def _finetunes(server: Here) -> FineTunes:
    if server.finetunes is None:
        raise NotFoundError("fine-tuning is off on this server; start it with latentdiff serve --train FOLDER")
    return server.finetunes


All = Annotated[FineTunes, Depends(_finetunes)]


def _named(name: str, finetunes: All) -> FineTune:
    return finetunes.find(name)


One = Annotated[FineTune, Depends(_named)]


class NewFineTune(BaseModel):
    """The name, and the folder or fine-tune from which the pictures are copied; if None, they are uploaded."""

    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str | None = Field(None, description="Below the server's --train folder.")
    copy_of: str | None = Field(None, description="Another fine-tune.")


class Resume(BaseModel):
    """How to continue. steps: the last step, if it differs from the planned one."""

    model_config = ConfigDict(extra="forbid")

    steps: StrictInt | None = Field(None, ge=1, le=100_000)


def _state(one: FineTune) -> dict[str, Any]:
    running = process.is_running(one)
    found = progress.read_progress(one, running)
    status = process.status(one, found.total)
    return {
        "name": one.name,
        "created": one.read("about.json").get("created", 0),
        "status": status,
        "settings": one.read(SETTINGS) or None,
        "check": one.read(CHECK) or None,
        "saved": one.steps_saved,
        "error": process.failure(one) if status == "failed" else None,
        "loras": [path.stem for path in one.loras],
        **asdict(found),
    }


@router.get("")
async def every(finetunes: All) -> dict[str, Any]:
    """All fine-tunes, newest first, and the folders that pictures can be taken from."""
    names = [{"name": one.name, "status": process.status(one, progress.planned_steps(one))} for one in finetunes.all()]
    return {"finetunes": names, "folders": await asyncio.to_thread(finetunes.folders)}


@router.post("", status_code=201)
async def create(body: NewFineTune, finetunes: All, server: Here) -> dict[str, Any]:
    """A new fine-tune; the pictures are copied."""
    other = finetunes.find(body.copy_of) if body.copy_of is not None else None
    async with finetunes.changing:
        one = finetunes.create(body.name)
        try:
            if other is not None:
                await asyncio.to_thread(pictures.copy_pictures, one, other)
            elif body.folder is not None:
                await asyncio.to_thread(pictures.add_folder, one, finetunes, body.folder, server.limits.body)
        except BaseException:
            shutil.rmtree(one.folder)
            raise
    return _state(one)


@router.get("/{name}")
async def show(one: One) -> dict[str, Any]:
    """Status, progress, curves and samples."""
    return await asyncio.to_thread(_state, one)


@router.delete("/{name}", status_code=204)
async def delete(one: One, finetunes: All, server: Here) -> None:
    """Remove a fine-tune with its copies of pictures, checkpoints and LoRAs."""
    async with finetunes.changing:
        if process.is_running(one):
            raise ConflictError(f"{one.name} is being trained; stop it first")
        for path in one.loras:
            server.engine.models.loras.pop(path.stem, None)
        await asyncio.to_thread(shutil.rmtree, one.folder)


@router.get("/{name}/pictures")
async def list_pictures(one: One) -> list[dict[str, Any]]:
    """The pictures with their captions."""
    found = await asyncio.to_thread(pictures.read_pictures, one)
    return [
        {"file": p.file, "captions": p.captions, "readable": pictures.thumbnail_of(one, p.file).is_file()}
        for p in found
    ]


@router.put("/{name}/pictures/{file}")
async def put_picture(file: str, http: Request, one: One, finetunes: All) -> dict[str, Any]:
    """Upload a picture; the body is the file."""
    data = await http.body()
    async with finetunes.changing:
        _refuse_running(one)
        added = await asyncio.to_thread(pictures.add_picture, one, file, data)
    return {"file": added.file, "captions": added.captions, "readable": True}


@router.delete("/{name}/pictures/{file}", status_code=204)
async def delete_picture(file: str, one: One, finetunes: All) -> None:
    """Remove a picture. The file that it was copied from is kept."""
    async with finetunes.changing:
        _refuse_running(one)
        await asyncio.to_thread(pictures.remove_picture, one, file)


@router.get("/{name}/thumbnails/{file}", response_class=Response)
async def thumbnail(file: str, one: One) -> Response:
    """A picture, at most 256 pixels a side."""
    path = pictures.thumbnail_of(one, file)
    if not pictures.is_file_name(file) or not path.is_file():
        raise NotFoundError("this picture does not exist, or cannot be read")
    return FileResponse(path, media_type="image/jpeg", headers=CACHED)


@router.patch("/{name}/captions", status_code=204)
async def captions(body: dict[str, list[str]], one: One, finetunes: All) -> None:
    """Replace the captions of the named pictures."""
    async with finetunes.changing:
        _refuse_running(one)
        await asyncio.to_thread(pictures.set_captions, one, body)


@router.post("/{name}/check")
async def check(body: Settings, one: One, finetunes: All, server: Here) -> dict[str, Any]:
    """What `latentdiff data check` reports for these settings."""
    async with finetunes.checking:
        return await asyncio.to_thread(process.check_pictures, one, body, _model(server, body))


@router.post("/{name}/start", status_code=202)
async def start(body: Settings, one: One, finetunes: All, server: Here) -> dict[str, Any]:
    """Start `latentdiff finetune` in a separate process."""
    async with finetunes.changing:
        pictures.refuse_started(one)
        await asyncio.to_thread(process.start, finetunes, one, body, _model(server, body))
    return _state(one)


@router.post("/{name}/resume", status_code=202)
async def resume(body: Resume, one: One, finetunes: All, server: Here) -> dict[str, Any]:
    """Continue from the newest checkpoint, with the settings it was started with."""
    async with finetunes.changing:
        if not one.started:
            raise ConflictError(f"{one.name} has no checkpoint; start it")
        settings = Settings(**one.read(SETTINGS))
        settings = settings.model_copy(update={"steps": body.steps or settings.steps})
        await asyncio.to_thread(process.start, finetunes, one, settings, _model(server, settings))
    return _state(one)


@router.post("/{name}/stop", status_code=202)
async def stop(one: One) -> dict[str, Any]:
    """Finish the step, save a checkpoint and end."""
    process.stop(one)
    return _state(one)


@router.get("/{name}/samples/{step}/{index}", response_class=Response)
async def sample(step: int, index: int, one: One) -> Response:
    """One sample of one evaluation."""
    data = await asyncio.to_thread(progress.sample_image, one, step, index)
    return Response(data, media_type="image/jpeg", headers=CACHED)


@router.post("/{name}/use")
async def use(one: One, finetunes: All, server: Here) -> dict[str, str]:
    """Add the newest LoRA to those that requests can name; it stays until the fine-tune is deleted."""
    async with finetunes.changing:
        path = await asyncio.to_thread(one.take_lora)
    server.engine.models.add_lora(LoraSpec(path.stem, path))
    return {"lora": path.stem}


@router.get("/{name}/loras/{lora}", response_class=Response)
async def download(lora: str, one: One) -> Response:
    """The file of a LoRA that was made available to requests."""
    found = next((path for path in one.loras if path.stem == lora), None)
    if found is None:
        raise NotFoundError(f"LoRA {lora[:80]!r} is unknown; make the LoRA of the fine-tune available first")
    return FileResponse(found, filename=found.name, media_type="application/octet-stream")


CACHED = {"Cache-Control": "private, max-age=3600"}


def _refuse_running(one: FineTune) -> None:
    if process.is_running(one):
        raise ConflictError(f"{one.name} is being trained; stop it or copy it to change its pictures")


def _model(server: Server, settings: Settings) -> ModelSpec:
    models = server.engine.models
    return models.specs[models.find(settings.model)]
