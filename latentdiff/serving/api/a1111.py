"""AUTOMATIC1111's API: generate images, report progress, interrupt."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from latentdiff.serving.a1111_names import a1111_sampler
from latentdiff.serving.api.a1111_arguments import arguments, editing, fill_from_infotext
from latentdiff.serving.api.a1111_request import Img2Img, Txt2Img
from latentdiff.serving.api.route import Router
from latentdiff.serving.encoding import as_base64, encode, infotext, preview
from latentdiff.serving.job import ImageRequest, Job, JobImage
from latentdiff.serving.server_state import Server, server_of

router = Router(tags=["a1111"])
Here = Annotated[Server, Depends(server_of)]
KEPT_TASKS = 64


@router.post("/sdapi/v1/txt2img")
async def txt2img(body: Txt2Img, http: Request, server: Here) -> dict[str, Any]:
    """Generate images from a prompt."""
    body = fill_from_infotext(body, server.limits)
    return await _answer(server, http, body, {})


@router.post("/sdapi/v1/img2img")
async def img2img(body: Img2Img, http: Request, server: Here) -> dict[str, Any]:
    """Generate images from an image, and a mask if there is one."""
    body = fill_from_infotext(body, server.limits)
    return await _answer(server, http, body, await server.decode(editing, body))


async def _answer(server: Server, http: Request, body: Txt2Img, image: dict[str, Any]) -> dict[str, Any]:
    """Run the request, and respond with its images. image: the arguments of image to image."""
    request = await server.request(**arguments(body, server.engine, server.a1111_model), **image)
    job = server.engine.submit(request)
    _register(server, job, body.force_task_id)
    try:
        return await _answered(server, job, body, await server.wait(job, http))
    finally:
        job.release()


def _register(server: Server, job: Job, task_id: str | None) -> None:
    """Make a job known to progress, interrupt and skip; the oldest finished tasks are forgotten."""
    task_id = task_id or f"task({job.id})"
    if (earlier := server.tasks.pop(task_id, None)) is not None and not earlier.over:
        server.tasks[f"task({earlier.id})"] = earlier
    server.tasks[task_id] = job
    over = [name for name, other in server.tasks.items() if other.over]
    for name in over[: max(0, len(server.tasks) - KEPT_TASKS)]:
        del server.tasks[name]


async def _answered(server: Server, job: Job, body: Txt2Img, images: list[JobImage]) -> dict[str, Any]:
    files = [as_base64(await asyncio.to_thread(encode, job, image, server.engine.models)) for image in images]
    echo = body.model_dump(mode="json")
    if not getattr(body, "include_init_images", False):
        echo |= {name: None for name in ("init_images", "mask") if name in echo}
    return {
        "images": files if body.send_images is not False else [],
        "parameters": echo,
        "info": json.dumps(_info(server, job, body, images), ensure_ascii=False),
    }


def _info(server: Server, job: Job, body: Txt2Img, images: list[JobImage]) -> dict[str, Any]:
    """A1111's metadata of the images; strict clients require every key, with the right type."""
    request, models = job.request, server.engine.models
    seeds, negative = [image.seed for image in images], request.negative_prompt or ""
    subseeds = [image.seed if image.variation_seed is None else image.variation_seed for image in images]
    prompt = body.prompt or ""
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(images),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(images),
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": subseeds[0] if subseeds else request.seed,
        "all_subseeds": subseeds,
        "subseed_strength": request.variation_strength or 0,
        "width": request.size[0],
        "height": request.size[1],
        "sampler_name": a1111_sampler(request.sampler),
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": models.facts[request.model].hash[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.hires.strength if request.hires else request.settings.get("strength"),
        "extra_generation_params": _extra_parameters(request),
        "index_of_first_image": 0,
        "infotexts": [infotext(job, image, models) for image in images],
        "styles": [],
        "job_timestamp": _timestamp(job),
        "clip_skip": 1 + request.settings.get("clip_skip", 0),
        "is_using_inpainting_conditioning": models.facts[request.model].limits.task == "inpaint",
        "version": "latentdiff",
    }


def _extra_parameters(request: ImageRequest) -> dict[str, Any]:
    """Settings that A1111 includes only if they apply."""
    extra: dict[str, Any] = {"Tiling": True} if request.settings.get("seamless") else {}
    if (hires := request.hires) is not None:
        steps = {} if hires.steps is None else {"Hires steps": hires.steps}
        extra |= {"Hires upscale": hires.scale, **steps, "Hires upscaler": Path(hires.upscaler).stem}
    return extra


def _timestamp(job: Job | None) -> str:
    return datetime.fromtimestamp(job.created if job else 0, UTC).strftime("%Y%m%d%H%M%S")


def _running(server: Server) -> list[Job]:
    return [job for job in server.tasks.values() if not job.over]


@router.get("/sdapi/v1/progress")
async def progress(server: Here, skip_current_image: bool = False) -> dict[str, Any]:
    """The progress of the oldest unfinished request of this API."""
    running = _running(server)
    job = running[0] if running else None
    return {
        "progress": job.progress if job else 0.0,
        "eta_relative": (job.eta() or 0.0) if job else 0.0,
        "state": {
            "skipped": False,
            "interrupted": bool(job and (job.stopping or job.interrupted)),
            "stopping_generation": bool(job and (job.stopping or job.interrupted)),
            "job": f"task({job.id})" if job else "",
            "job_count": len(running),
            "job_timestamp": _timestamp(job),
            "job_no": 0,
            "sampling_step": max(job.done) if job else 0,
            "sampling_steps": job.total if job else 0,
        },
        "current_image": None if job is None or skip_current_image else await _current_image(server, job),
        "textinfo": None,
    }


async def _current_image(server: Server, job: Job) -> str | None:
    if not (shown := list(job.x0.values())):
        return None
    return as_base64(await server.compute(preview, job, shown[0], server.engine.models, "png", True))


@router.post("/sdapi/v1/interrupt")
async def interrupt(server: Here) -> dict[str, Any]:
    """Interrupt the running requests of this API; the responses contain the current predictions of the images."""
    server.engine.stop_jobs([job for job in _running(server) if job.started_at is not None])
    return {}


@router.post("/sdapi/v1/skip")
async def skip(server: Here) -> dict[str, Any]:
    """Interrupt the oldest running request of this API."""
    server.engine.stop_jobs([job for job in _running(server) if job.started_at is not None][:1])
    return {}


class ProgressRequest(BaseModel):
    """The id of a task, and whether to send a preview."""

    id_task: str | None = None
    id_live_preview: int | None = -1
    live_preview: bool | None = True


@router.post("/internal/progress")
async def task_progress(body: ProgressRequest, server: Here) -> dict[str, Any]:
    """The progress of one task."""
    job = server.tasks.get(body.id_task or "")
    image = None if job is None or job.over or not body.live_preview else await _current_image(server, job)
    return {
        "active": bool(job and job.started_at is not None and not job.over),
        "queued": bool(job and job.started_at is None and not job.over),
        "completed": bool(job and job.over),
        "progress": job.progress if job else None,
        "eta": job.eta() if job else None,
        "live_preview": image and f"data:image/png;base64,{image}",
        "id_live_preview": max(job.done) if job else -1,
        "textinfo": None
        if job is None or (position := server.engine.queue.position(job)) == 0
        else f"In queue: {position}",
    }


@router.get("/internal/pending-tasks")
async def pending_tasks(server: Here) -> dict[str, Any]:
    """Tasks of this API that are not finished."""
    tasks = [name for name, job in server.tasks.items() if not job.over]
    return {"size": len(tasks), "tasks": tasks}


@router.get("/internal/ping")
async def ping() -> dict[str, Any]:
    """The server answers."""
    return {}
