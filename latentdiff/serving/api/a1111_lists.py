"""A1111's lists of models, samplers and files, its options, and loading and unloading the model."""

from typing import Annotated, Any

import psutil
import torch
from fastapi import Body, Depends

from latentdiff.recipe.names import A1111_SAMPLERS
from latentdiff.serving import a1111_names
from latentdiff.serving.api.a1111_arguments import find_checkpoint
from latentdiff.serving.api.a1111_extras import RESAMPLING
from latentdiff.serving.api.operations import resident_bytes
from latentdiff.serving.api.route import Router
from latentdiff.serving.server_state import Server, server_of

router = Router(prefix="/sdapi/v1", tags=["a1111"])
Here = Annotated[Server, Depends(server_of)]
LATENT_MODES = ("Latent", "Latent (bicubic)")  # of hires; both are bicubic
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
    """Select the model for requests to this API, and load it; other options are accepted and have no effect."""
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
    """Learned words of the model that is selected for this API."""
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
