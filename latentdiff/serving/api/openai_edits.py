"""OpenAI's image edits and variations: multipart forms with an image, and a mask for edits."""

import re
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartParser

from latentdiff.images.edit import EditOptions
from latentdiff.serving.api.openai import ImagesRequest, answer, image_request
from latentdiff.serving.api.route import Router
from latentdiff.serving.errors import ServingError
from latentdiff.serving.limits import Limits
from latentdiff.serving.server_state import Server, server_of
from latentdiff.serving.uploads import image_from, mask_from

MultiPartParser.spool_max_size = Limits.body  # forms stay in memory, so that edits do not need space on the disk
router = Router(prefix="/v1/images", tags=["openai"])
Here = Annotated[Server, Depends(server_of)]
STRENGTH = 0.75  # of edits without a mask, and of variations
LORA = re.compile(r"loras\[(.+)\]")
NOT_SETTINGS = ("image", "image[]", "mask", "strength")
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "mask": {"type": "string", "format": "binary"},
                        "prompt": {"type": "string"},
                        "n": {"type": "integer", "minimum": 1, "maximum": 10},
                        "size": {"type": "string"},
                        "strength": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                }
            }
        },
    }
}


@router.post("/edits", response_model=None, openapi_extra=FORM)
async def edits(http: Request, server: Here) -> Response:
    """Change an image according to a prompt: all of it, or the area where the mask is transparent."""
    return await _edit(http, server, "image_edit", needs_prompt=True)


@router.post("/variations", response_model=None, openapi_extra=FORM)
async def variations(http: Request, server: Here) -> Response:
    """Variations of an image."""
    return await _edit(http, server, "image_generation", needs_prompt=False)


async def _edit(http: Request, server: Server, kind: str, needs_prompt: bool) -> Response:
    async with http.form(max_files=20, max_part_size=server.limits.prompt_characters * 4) as form:
        images = [*form.getlist("image"), *form.getlist("image[]")]
        if len(images) != 1 or not isinstance(images[0], UploadFile):
            raise ServingError(f"image contains {len(images)} files; send exactly one", "image")
        mask = form.get("mask")
        body = _body(form, needs_prompt)
        data = await images[0].read()
        mask_data = await mask.read() if isinstance(mask, UploadFile) else None
        strength = _strength(form.get("strength"))
    editing = await server.decode(_editing, data, mask_data, strength)
    return await answer(server, http, await image_request(server, body, **editing), body, kind)


def _editing(data: bytes, mask_data: bytes | None, strength: float | None) -> dict[str, Any]:
    image = image_from(data, "image")
    if mask_data is None:
        return {"image": image, "strength": STRENGTH if strength is None else strength, "edit": EditOptions()}
    mask = mask_from(mask_data, "mask", transparent_is_repainted=True)
    if mask.size != image.size:
        raise ServingError(
            f"the mask is {mask.size} and the image {image.size}; send a mask of the image's size", "mask"
        )
    return {
        "image": image,
        "mask_image": mask,
        "strength": 1.0 if strength is None else strength,
        "edit": EditOptions(),
    }


def _strength(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise ServingError(f"strength={str(value)[:40]!r} is not a number from 0 to 1; try 0.75", "strength") from None


def _body(form: FormData, needs_prompt: bool) -> ImagesRequest:
    """The text fields. The client flattens nested values: `loras[name]` is one weight."""
    texts = {key: value for key, value in form.items() if isinstance(value, str) and key not in NOT_SETTINGS}
    weights = {match[1]: value for key, value in texts.items() if (match := LORA.fullmatch(key))}
    values: dict[str, Any] = {key: value for key, value in texts.items() if not LORA.fullmatch(key)}
    values["loras"] = weights
    if not needs_prompt:
        values.setdefault("prompt", "")
    try:
        return ImagesRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = str(first["loc"][0])
        raise ServingError(f"{param}: {first['msg']}", param) from error
