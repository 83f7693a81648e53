"""A1111's lists and options, reading a file's settings, and enlarging."""

import asyncio
import io
from functools import partial
from typing import Annotated, Any

import psutil
import torch
from fastapi import APIRouter, Body, Depends
from PIL import Image
from pydantic import BaseModel

from latentdiff.images.upscaling import upscale
from latentdiff.recipe.names import A1111_SAMPLERS
from latentdiff.serving import a1111_names
from latentdiff.serving.api.a1111_arguments import find_checkpoint
from latentdiff.serving.api.a1111_request import Real, Text, Whole
from latentdiff.serving.api.operations import resident_bytes
from latentdiff.serving.encoding import as_base64, text_chunks
from latentdiff.serving.errors import LimitError, NotFoundError
from latentdiff.serving.server_state import Server, server_of
from latentdiff.serving.uploads import from_base64, image_from

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
Here = Annotated[Server, Depends(server_of)]
LATENT_MODES = ("Latent", "Latent (bicubic)")  # of hires; both are bicubic
RESAMPLING = {
    "None": Image.Resampling.NEAREST,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}
NETWORK_FACTOR = 4  # what a network makes before it is resized may have this many times the pixels of the limit
EMPTY_LISTS = ("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "extensions", "sd-vae",
               "script-info")  # fmt: skip
REFRESHABLE = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")


async def _nothing() -> list[Any]:
    return []


async def _null() -> None:
    return None


for name in EMPTY_LISTS:
    router.add_api_route(f"/{name}", _nothing, methods=["GET"], name=name, summary=f"No {name} on this server.")
for name in REFRESHABLE:
    router.add_api_route(
        f"/{name}",
        _null,
        methods=["POST"],
        name=name,
        summary="Has no effect: files are listed when the server starts.",
    )


@router.get("/options")
async def options(server: Here) -> dict[str, Any]:
    """The options that clients read."""
    facts = server.engine.models.facts.get(server.a1111_model)
    return {
        "sd_model_checkpoint": server.a1111_model,
        "sd_checkpoint_hash": facts.hash if facts else "",
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


@router.post("/options")
async def set_options(changes: Annotated[dict[str, Any], Body()], server: Here) -> None:
    """Choose the model of this API's requests, and load it; other options are accepted and have no effect."""
    if checkpoint := changes.get("sd_model_checkpoint"):
        model = find_checkpoint(str(checkpoint), server.engine.models)
        await server.model_limits(model)
        server.a1111_model = model


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """A1111's command line options; none here."""
    return {}


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """Samplers under A1111's names."""
    return [{"name": name, "aliases": [ours], "options": {}} for name, ours in A1111_SAMPLERS.items()]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """Schedules under A1111's names."""
    same = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": a1111_names.scheduler_name(label), "label": label, **same} for label in a1111_names.SCHEDULERS]


@router.get("/upscalers")
async def upscalers(server: Here) -> list[dict[str, Any]]:
    """How images are enlarged: interpolations, and the ESRGAN files of this server."""
    same = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    return [{"name": name, **same} for name in (*RESAMPLING, *server.engine.upscalers.paths)]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """How latents are enlarged for a second pass."""
    return [{"name": name} for name in LATENT_MODES]


@router.get("/sd-models")
async def sd_models(server: Here) -> list[dict[str, Any]]:
    """Models; the hash is null until a model has been loaded once."""
    found = []
    for name in server.engine.models.specs:
        facts = server.engine.models.facts.get(name)
        short = facts.hash[:10] if facts else None
        found.append(
            {"title": name, "model_name": name, "hash": short, "sha256": None, "filename": name, "config": None}
        )
    return found


@router.get("/loras")
async def loras(server: Here) -> list[dict[str, Any]]:
    """LoRAs, by the names that prompts use."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in server.engine.models.loras]


@router.get("/embeddings")
async def embeddings(server: Here) -> dict[str, Any]:
    """Learned words of the model that this API's clients chose."""
    facts = server.engine.models.facts.get(server.a1111_model)
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    return {"loaded": dict.fromkeys(facts.words, unknown) if facts else {}, "skipped": {}}


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """A1111's scripts; none here."""
    return {"txt2img": [], "img2img": []}


@router.get("/memory")
async def memory() -> dict[str, Any]:
    """Memory in bytes."""
    system = psutil.virtual_memory()
    ram = {"free": system.available, "used": resident_bytes(), "total": system.total}
    if not torch.cuda.is_available():
        return {"ram": ram, "cuda": {"error": "no CUDA device"}}
    free, total = torch.cuda.mem_get_info()
    held = {"current": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
    reserved = {"current": torch.cuda.memory_reserved(), "peak": torch.cuda.max_memory_reserved()}
    system = {"free": free, "used": total - free, "total": total}
    cuda = {"system": system, "active": held, "allocated": held, "reserved": reserved}
    return {"ram": ram, "cuda": {**cuda, "inactive": {"current": 0, "peak": 0}, "events": {"retries": 0, "oom": 0}}}


@router.post("/unload-checkpoint")
async def unload_checkpoint(server: Here) -> dict[str, Any]:
    """Free the model's memory; the next request loads it again."""
    server.engine.models.unload(server.a1111_model)
    return {}


@router.post("/reload-checkpoint")
async def reload_checkpoint(server: Here) -> dict[str, Any]:
    """Load the model."""
    server.engine.models.get(server.a1111_model)
    return {}


class PngInfo(BaseModel):
    """A file as base64."""

    image: str


@router.post("/png-info")
async def png_info(body: PngInfo) -> dict[str, Any]:
    """The settings stored in a PNG."""
    items = await asyncio.to_thread(text_chunks, from_base64(body.image, "image"))
    return {"info": items.get("parameters", ""), "items": items, "parameters": {}}


class ExtraImage(BaseModel):
    """An image to enlarge, by a factor (resize_mode 0) or to a size (1)."""

    image: Text = None
    resize_mode: Whole = 0
    upscaling_resize: Real = 2.0
    upscaling_resize_w: Whole = 512
    upscaling_resize_h: Whole = 512
    upscaler_1: Text = "Lanczos"


@router.post("/extra-single-image")
async def extra_single_image(body: ExtraImage, server: Here) -> dict[str, Any]:
    """Enlarge an image. It counts towards the queue's bound, and such requests are served one at a time."""
    with server.engine.queue.reserve(1):
        data = await asyncio.wrap_future(server.engine.finisher.upscale(partial(_enlarge, body, server)))
    return {"html_info": "", "image": as_base64(data)}


def _enlarge(body: ExtraImage, server: Server) -> bytes:
    image = image_from(from_base64(body.image or "", "image"), "image")
    factor = body.upscaling_resize or 1.0
    width, height = (side * factor for side in image.size)
    if body.resize_mode == 1:
        width, height = body.upscaling_resize_w or 512, body.upscaling_resize_h or 512
    if not (min(width, height) >= 1 and width * height <= server.limits.pixels):
        raise LimitError(
            f"{width:g}x{height:g} is outside of 1 to {server.limits.pixels} pixels, this server's limit",
            "upscaling_resize",
        )
    buffer = io.BytesIO()
    _enlarged(image, (round(width), round(height)), body.upscaler_1 or "None", server).save(buffer, "PNG")
    return buffer.getvalue()


def _enlarged(image: Image.Image, size: tuple[int, int], name: str, server: Server) -> Image.Image:
    if name in RESAMPLING:
        return image.resize(size, RESAMPLING[name])
    store, pipe = server.engine.upscalers, server.engine.models.get(server.engine.models.default)
    if name not in store.paths:
        known = ", ".join((*RESAMPLING, *store.paths))
        raise NotFoundError(f"upscaler {name[:80]!r} is unknown; known: {known}", "upscaler_1")
    network = store.get(store.find(name), pipe.device if pipe else torch.device("cpu"))
    assert network is not None
    made = image.width * image.height * network.scale**2
    server.limits.check("pixels of the upscaler's output", made, NETWORK_FACTOR * server.limits.pixels)
    return upscale(image, size, network)
