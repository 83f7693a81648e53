"""`Router`: refuses JSON bodies with text that cannot be encoded, which would fail later, in a response or a file."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class CheckedRequest(Request):
    """A request whose JSON contains only characters."""

    async def json(self) -> Any:
        """The decoded body. Raises HTTPException, which FastAPI lets through, for half a surrogate pair."""
        value = await super().json()
        if SURROGATE.search(await self.body()):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                half = ascii(error.object[error.start])
                raise HTTPException(400, f"the body contains {half}, half a surrogate pair; remove it") from error
        return value


class CheckedRoute(APIRoute):
    """A route that reads its body by `CheckedRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route."""
        handle = super().get_route_handler()

        async def checked(http: Request) -> Response:
            return await handle(CheckedRequest(http.scope, http.receive))

        return checked


class Router(APIRouter):
    """A router of checked routes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=CheckedRoute, **options)
