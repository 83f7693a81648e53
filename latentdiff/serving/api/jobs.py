"""Our own API: a job is posted, watched by server-sent events, and deleted."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic import StrictFloat as Float
from pydantic import StrictInt as Int

from latentdiff.hires import PIXEL, Hires
from latentdiff.images.edit import EditOptions
from latentdiff.serving.api.events import DESCRIPTION, PING, PING_SECONDS, event, stream
from latentdiff.serving.api.route import Router
from latentdiff.serving.dialects import openai_error
from latentdiff.serving.encoding import Format, as_base64, encode, preview
from latentdiff.serving.errors import NotFoundError, ServingError
from latentdiff.serving.job import Job, JobImage
from latentdiff.serving.server_state import Server, server_of
from latentdiff.serving.uploads import from_base64, image_from, mask_from

router = Router(tags=["jobs"])
Here = Annotated[Server, Depends(server_of)]
PREVIEW_SECONDS = 0.1  # between two previews of one job

EXAMPLE: dict[str, Any] = {"prompt": "a red apple", "steps": 25, "guidance_scale": 3.0, "seed": 7, "images": 1}


class JobRequest(BaseModel):
    """The images to generate; the model's defaults apply to fields that are omitted."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    prompt: str
    negative_prompt: str | None = None
    model: str | None = Field(None, description="A model listed by /v1/capabilities.")
    images: Int = Field(1, ge=1, description="Image k uses seed + k.")
    seed: Int | None = Field(None, ge=0, lt=2**53, description="Random if omitted.")
    variation_seed: Int | None = Field(
        None, ge=0, lt=2**53, description="Image k mixes in the noise of variation_seed + k."
    )
    variation_strength: Float | None = Field(
        None, ge=0, le=1, description="How much noise to mix in, 0 to 1; all images then share one seed."
    )
    width: Int | None = Field(None, ge=1, description="Pixels.")
    height: Int | None = Field(None, ge=1, description="Pixels.")
    steps: Int | None = Field(None, ge=1)
    guidance_scale: Float | None = Field(None, ge=0, le=100, description="1 or less disables guidance.")
    guidance_interval: tuple[Float, Float] | None = Field(None, description="Guide only at these noise levels, 0 to 1.")
    sampler: str | None = None
    eta: Float | None = Field(None, ge=0, le=1)
    spacing: str | None = Field(None, description="Spacing of the noise levels, for example karras.")
    prompt_2: str | None = Field(None, description="For the second text encoder of models that have two.")
    negative_prompt_2: str | None = None
    prompt_syntax: Literal["a1111", "plain"] = Field(
        "a1111", description="a1111, or plain, which does not parse weights, tags or schedules."
    )
    clip_skip: Int | None = Field(None, ge=0, description="Final layers of the text encoders to skip, as in diffusers.")
    tile: Int | None = Field(
        None, ge=1, description="Evaluate the networks in overlapping tiles with sides of this many pixels."
    )
    seamless: str | None = Field(None, description="x, y or x,y: axes along which opposite edges match.")
    hires: Float | None = Field(None, description="Scale of a second pass.")
    hires_strength: Float | None = Field(None, ge=0, le=1, description="Strength of the second pass; 0.3 if omitted.")
    hires_steps: Int | None = Field(None, ge=1, description="Steps of the second pass; those of the first if omitted.")
    upscaler: str | None = Field(None, description="lanczos, latent, or an upscaler listed by /v1/capabilities.")
    image: str | None = Field(None, description="Base64 of an image to start from.")
    mask: str | None = Field(None, description="Base64 of a mask, white where the image is repainted.")
    strength: Float | None = Field(None, ge=0, le=1, description="With an image: the fraction of the steps to run.")
    fit: Literal["cover", "contain", "stretch"] = "cover"
    extend: dict[str, Int] = Field({}, description="Pixels to add at the edges: left, top, right, bottom.")
    mask_blur: Float = Field(4.0, ge=0, le=256)
    mask_fill: Literal["original", "noise", "blur"] = "original"
    only_masked: Int | None = Field(
        None, ge=0, le=4096, description="Paint only the masked area, with this many pixels around it."
    )
    loras: dict[str, Float | tuple[Float, Float]] = Field({}, description="Weight by name, or U-Net and text weights.")
    deadline: Float | None = Field(None, gt=0, description="Seconds after which an unfinished job fails.")


class JobState(BaseModel):
    """The progress of a job. position: in the queue, 0 once it has started. done: evaluations of each image, out of
    `total`.
    """

    id: str
    status: str
    position: int
    done: list[int]
    total: int
    progress: float
    eta: float | None
    created: int
    request: dict[str, Any]
    images: list[dict[str, Any]]
    error: dict[str, Any] | None


def state_of(server: Server, job: Job) -> JobState:
    """A job as JSON."""
    request = job.request
    return JobState(
        id=job.id,
        status=job.status,
        position=server.engine.queue.position(job),
        done=job.done,
        total=job.total,
        progress=round(job.progress, 4),
        eta=None if (eta := job.eta()) is None else round(eta, 2),
        created=job.created,
        request={
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "model": request.model,
            "images": request.images,
            "seed": request.seed,
            "variation_seed": request.variation_seed,
            "variation_strength": request.variation_strength,
            "width": request.size[0],
            "height": request.size[1],
            "steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "sampler": request.sampler,
            "loras": dict(request.loras),
            **_shown(request.hires),
            **{key: value for key, value in request.settings.items() if key not in ("image", "mask_image", "edit")},
        },
        images=[
            {"url": f"/jobs/{job.id}/images/{k}", **_seeds(image), "stopped": image.stopped, **image.checked}
            for k, image in sorted(job.images.items())
        ],
        error=None if job.error is None else openai_error(job.error),
    )


def _seeds(image: JobImage) -> dict[str, int]:
    varied = {} if image.variation_seed is None else {"variation_seed": image.variation_seed}
    return {"seed": image.seed, **varied}


def _shown(hires: Hires | None) -> dict[str, Any]:
    if hires is None:
        return {}
    upscaler = hires.upscaler.stem if isinstance(hires.upscaler, Path) else hires.upscaler
    numbers = {"hires": hires.scale, "hires_strength": hires.strength, "hires_steps": hires.steps}
    return numbers | {"upscaler": upscaler}


@router.post("/jobs", status_code=202)
async def submit(body: JobRequest, server: Here) -> JobState:
    """Accept a job; responds with 429 and Retry-After if the queue is full."""
    values = body.model_dump(exclude={"deadline", *EDITING, *SECOND_PASS})
    hires = _second_pass(body, server)
    request = await server.request(**values, hires=hires, **await server.decode(_editing, body))
    job = server.engine.submit(request, body.deadline)
    server.keep(job)
    return state_of(server, job)


SECOND_PASS = ("hires", "hires_strength", "hires_steps", "upscaler")
EDITING = ("image", "mask", "strength", "fit", "extend", "mask_blur", "mask_fill", "only_masked")


def _second_pass(body: JobRequest, server: Server) -> Hires | None:
    given = {name: value for name in SECOND_PASS if (value := getattr(body, name)) is not None}
    if body.hires is None:
        if given:
            raise ServingError(f"{next(iter(given))} requires a second pass; set hires to 2", "hires")
        return None
    strength = Hires.strength if body.hires_strength is None else body.hires_strength
    return Hires(body.hires, strength, body.hires_steps, server.engine.upscalers.find(body.upscaler or PIXEL))


def _editing(body: JobRequest) -> dict[str, Any]:
    """The arguments of image to image and inpainting."""
    if body.image is None:
        if given := [name for name in EDITING if getattr(body, name) != JobRequest.model_fields[name].default]:
            raise ServingError(f"{given[0]} requires an image; send image as base64", "image")
        return {}
    mask = None if body.mask is None else mask_from(from_base64(body.mask, "mask"), "mask")
    edit = EditOptions(
        fit=body.fit,
        extend=body.extend,
        mask_blur=body.mask_blur,
        mask_fill=body.mask_fill,
        only_masked=body.only_masked,
    )
    image = image_from(from_base64(body.image, "image"), "image")
    return {"image": image, "mask_image": mask, "strength": body.strength, "edit": edit}


@router.get("/jobs/{job_id}")
async def show(job_id: str, server: Here) -> JobState:
    """The state of a job."""
    return state_of(server, server.find_job(job_id))


@router.delete("/jobs/{job_id}")
async def delete(job_id: str, server: Here) -> JobState:
    """Cancel a job, or delete a finished one."""
    job = server.find_job(job_id)
    if job.over:
        server.finished.pop(job_id, None)
    else:
        server.engine.cancel(job)
    return state_of(server, job)


@router.get("/jobs/{job_id}/images/{index}", response_class=Response,
            responses={200: {"content": {"image/png": {}}}})  # fmt: skip
async def image(
    job_id: str,
    index: int,
    server: Here,
    format: Format = "png",
    quality: Annotated[int, Query(ge=1, le=100)] = 90,
) -> Response:
    """A finished image; a PNG contains its recipe."""
    job = server.find_job(job_id)
    if (made := job.images.get(index)) is None:
        raise NotFoundError(f"image {index} of this job is not finished, or does not exist")
    data = await asyncio.to_thread(encode, job, made, server.engine.models, format, quality)
    job.collected = True
    return Response(data, media_type=f"image/{format}", headers={"Cache-Control": "private, max-age=3600, immutable"})


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses=DESCRIPTION)
async def events(
    job_id: str,
    server: Here,
    previews: Annotated[bool, Query(description="Also send small previews.")] = True,
) -> StreamingResponse:
    """Events `progress`, `preview`, and last `result` or `error`. A slow reader misses some, never the last."""
    return stream(_events(server, server.find_job(job_id), previews))


async def _events(server: Server, job: Job, previews: bool) -> AsyncIterator[str]:
    sent, shown, last_preview, last_sent = "", {}, 0.0, time.monotonic()  # type: tuple[str, dict[int, int], float, float]
    async for _ in job.changes(1.0):
        state = state_of(server, job).model_dump_json(exclude={"request"})
        if state != sent and not job.over:
            sent, last_sent = state, time.monotonic()
            yield f"event: progress\ndata: {state}\n\n"
        elif time.monotonic() - last_sent > PING_SECONDS:
            last_sent = time.monotonic()
            yield PING
        if previews and not job.over and time.monotonic() - last_preview > PREVIEW_SECONDS:
            last_preview = time.monotonic()
            for index, x0 in list(job.x0.items()):
                if shown.get(index) != job.done[index]:
                    shown[index] = job.done[index]
                    data = await server.compute(preview, job, x0, server.engine.models)
                    yield event("preview", {"image": index, "step": shown[index], "png": as_base64(data)})
    final = "error" if job.error is not None else "result"
    yield f"event: {final}\ndata: {state_of(server, job).model_dump_json()}\n\n"
