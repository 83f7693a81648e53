"""A1111's tabs "Extras" and "PNG Info": enlarge an image, and read the settings stored in one."""

import asyncio
import io
from functools import partial
from typing import Annotated, Any

import torch
from fastapi import Depends
from PIL import Image
from pydantic import BaseModel

from latentdiff.images.upscaling import upscale
from latentdiff.serving.api.a1111_request import Real, Text, Whole
from latentdiff.serving.api.route import Router
from latentdiff.serving.encoding import as_base64, text_chunks
from latentdiff.serving.errors import LimitError, NotFoundError, ServingError
from latentdiff.serving.server_state import Server, server_of
from latentdiff.serving.uploads import from_base64, image_from

router = Router(prefix="/sdapi/v1", tags=["a1111"])
Here = Annotated[Server, Depends(server_of)]
RESAMPLING = {
    "None": Image.Resampling.NEAREST,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}
NETWORK_FACTOR = 4  # the output of a network, before it is resized, may exceed the limit of pixels by this factor


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
    """Enlarge an image. The request counts towards the queue's limit; such requests are processed one at a time."""
    with server.engine.queue.reserve(1):
        data = await asyncio.wrap_future(server.engine.finisher.upscale(partial(_enlarge, body, server)))
    return {"html_info": "", "image": as_base64(data)}


def _enlarge(body: ExtraImage, server: Server) -> bytes:
    image = image_from(from_base64(body.image or "", "image"), "image")
    if body.resize_mode not in (None, 0, 1):
        raise ServingError(f"resize_mode={body.resize_mode} is not supported; use 0 or 1", "resize_mode")
    factor = body.upscaling_resize or 1.0
    width, height = (side * factor for side in image.size)
    if body.resize_mode == 1:
        width, height = body.upscaling_resize_w or 512, body.upscaling_resize_h or 512
    if not (min(width, height) >= 1 and width * height <= server.limits.pixels):
        raise LimitError(
            f"{width:g}x{height:g} is not within 1 to {server.limits.pixels} pixels, this server's limit",
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
