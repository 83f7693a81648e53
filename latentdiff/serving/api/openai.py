"""OpenAI's images API: generations with streaming, models, and files that `url` responses refer to."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from latentdiff.sampling.samplers import SAMPLERS
from latentdiff.serving.api.events import event, stream
from latentdiff.serving.api.route import Router
from latentdiff.serving.dialects import openai_error
from latentdiff.serving.encoding import as_base64, encode, preview
from latentdiff.serving.errors import ServingError, as_serving_error
from latentdiff.serving.job import ImageRequest, Job, JobImage
from latentdiff.serving.server_state import Server, server_of

router = Router(prefix="/v1", tags=["openai"])
Here = Annotated[Server, Depends(server_of)]
HOSTED_MODELS = ("gpt-image-", "dall-e-")  # names that clients send by default
STEPS_BY_QUALITY = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 2.0}  # of the model's own
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
EXAMPLE: dict[str, Any] = {"prompt": "a red apple", "n": 1, "size": "128x128", "response_format": "b64_json", "seed": 7}


class ImagesRequest(BaseModel):
    """Fields of `client.images.generate`; after `user`, extensions with the names of vLLM-Omni and with our own.

    moderation, style, input_fidelity, complexity and user have no effect here. Other fields are refused.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    prompt: str
    model: str | None = None
    n: int | None = Field(1, ge=1, le=10)
    size: str | None = Field("auto", description="WIDTHxHEIGHT, or auto for the model's default.")
    quality: Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"] | None = "auto"
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    background: Literal["auto", "opaque"] | None = "auto"
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    moderation: str | None = None
    style: str | None = None
    input_fidelity: str | None = None
    complexity: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    seed: int | None = Field(None, ge=0, lt=2**53)
    sampler: str | None = None
    seamless: str | None = None
    tile: int | None = Field(None, ge=1)
    loras: dict[str, float | tuple[float, float]] = {}


@router.get("/models")
async def models(server: Here) -> dict[str, Any]:
    """The models of this server."""
    return {"object": "list", "data": [_model(name) for name in server.engine.models.specs]}


@router.get("/models/{name:path}")
async def model(name: str, server: Here) -> dict[str, Any]:
    """One model."""
    return _model(server.engine.models.find(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "latentdiff"}


@router.post("/images/generations", response_model=None, responses={200: {"content": {"text/event-stream": {}}}})
async def generations(body: ImagesRequest, http: Request, server: Here) -> Response:
    """Generate images; `stream` sends partial images as server-sent events."""
    request = await image_request(server, body)
    return await answer(server, http, request, body, "image_generation")


async def image_request(server: Server, body: ImagesRequest, **editing: Any) -> ImageRequest:
    """Convert a body to a request for the engine. editing: the arguments of image to image."""
    model = server.engine.models.find(None if (body.model or "").startswith(HOSTED_MODELS) else body.model)
    width, height = _size(body.size)
    steps = body.num_inference_steps
    if steps is None and body.quality in STEPS_BY_QUALITY:
        default = (await server.model_limits(model)).generation.num_inference_steps
        steps = min(max(1, round(default * STEPS_BY_QUALITY[body.quality])), server.limits.steps)
    return await server.request(
        prompt=body.prompt,
        model=model,
        images=body.n or 1,
        seed=body.seed,
        height=height,
        width=width,
        steps=steps,
        guidance_scale=body.guidance_scale,
        sampler=body.sampler,
        negative_prompt=body.negative_prompt,
        loras=body.loras,
        seamless=body.seamless,
        tile=body.tile,
        **editing,
    )


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size is None or size == "auto":
        return None, None
    if (match := SIZE.fullmatch(size)) is None or not (int(match[1]) and int(match[2])):
        raise ServingError(f"size={size[:40]!r} is not WIDTHxHEIGHT in pixels; try 512x512", "size")
    return int(match[1]), int(match[2])


async def answer(server: Server, http: Request, request: ImageRequest, body: ImagesRequest, kind: str) -> Response:
    """Run a job and respond with one JSON body, or with events named after `kind` if the client requested a stream."""
    if body.stream:
        keep_at = _partial_steps(request, body.partial_images or 0)
        job = server.engine.submit(request, keep_at=keep_at)
        return stream(_stream(server, job, body, kind))
    job = server.engine.submit(request)
    with server.files.expect() if body.response_format == "url" else nullcontext():
        images = await server.wait(job, http)
        data = [await asyncio.to_thread(_datum, server, http, job, image, body) for image in images]
    return JSONResponse({"data": data, **_common(job, body), "created": job.created})


def _partial_steps(request: ImageRequest, count: int) -> tuple[int, ...]:
    """The evaluations after which partial images are sent, evenly spaced; only of a single image."""
    if request.images > 1:
        return ()
    total = SAMPLERS[request.sampler].evaluations * request.steps if request.sampler in SAMPLERS else request.steps
    return tuple(sorted({max(1, round(total * (k + 1) / (count + 1))) for k in range(count)}))


def _common(job: Job, body: ImagesRequest) -> dict[str, Any]:
    request = job.request
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    common: dict[str, Any] = {
        "size": "{}x{}".format(*request.size),
        "quality": body.quality or "auto",
        "background": "opaque",
        "output_format": body.output_format or "png",
        "usage": usage | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}},
    }
    return common | ({"safety_identifier": body.safety_identifier} if body.safety_identifier else {})


def _file(server: Server, job: Job, image: JobImage, body: ImagesRequest) -> bytes:
    quality = 90 if body.output_compression is None else body.output_compression
    return encode(job, image, server.engine.models, body.output_format or "png", quality)


def _datum(server: Server, http: Request, job: Job, image: JobImage, body: ImagesRequest) -> dict[str, Any]:
    data = _file(server, job, image, body)
    if body.response_format != "url":
        return {"b64_json": as_base64(data), "seed": image.seed, **image.checked}
    name = server.files.write(data, body.output_format or "png")
    return {"url": str(http.url_for("image_file", name=name)), "seed": image.seed, **image.checked}


async def _stream(server: Server, job: Job, body: ImagesRequest, kind: str) -> AsyncIterator[str]:
    models, sent = server.engine.models, 0
    common = _common(job, body)
    try:
        async for _ in job.changes(10.0):
            while sent < len(job.partials):
                form = body.output_format or "png"
                data = await server.compute(preview, job, job.partials[sent], models, form, True)
                part = {key: value for key, value in common.items() if key != "usage"}
                image = {"b64_json": as_base64(data), "partial_image_index": sent, "created_at": int(time.time())}
                yield event(f"{kind}.partial_image", {"type": f"{kind}.partial_image", **image, **part})
                sent += 1
        try:
            for image_made in job.result():
                data = await asyncio.to_thread(_file, server, job, image_made, body)
                final = {"type": f"{kind}.completed", "b64_json": as_base64(data), "created_at": int(time.time())}
                yield event(f"{kind}.completed", final | common | {"seed": image_made.seed})
        except Exception as error:
            yield event("error", {"type": "error", "error": openai_error(as_serving_error(error))})
        yield "data: [DONE]\n\n"
    finally:
        if not job.over:
            server.engine.cancel(job)


@router.get("/files/{name}", name="image_file", response_class=FileResponse)
async def image_file(name: str, server: Here) -> FileResponse:
    """An image that a `url` response refers to."""
    path = server.files.find(name)
    return FileResponse(path, media_type=f"image/{path.suffix[1:]}", headers={"Cache-Control": "private, max-age=3600"})
