"""The HTTP application: routes, errors in each client's dialect, starting and stopping the engine."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import latentdiff
from latentdiff.errors import LatentDiffError
from latentdiff.serving.api import (
    a1111,
    a1111_extras,
    a1111_lists,
    finetunes,
    jobs,
    openai,
    openai_edits,
    operations,
    page,
)
from latentdiff.serving.dialects import error_body
from latentdiff.serving.errors import InternalError, ServingError, as_serving_error
from latentdiff.serving.finetunes.process import stop_all
from latentdiff.serving.guard import Guard
from latentdiff.serving.server_state import Server

log = logging.getLogger("latentdiff.serving")
DRAIN_SECONDS = 600.0
STOP_SECONDS = 120.0  # for a fine-tune to save a checkpoint


class InvalidRequestError(ServingError):
    """A body or parameter that does not follow the schema."""

    status = 422


def create_app(server: Server) -> FastAPI:
    """The application of a server whose engine has not been started."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.engine.start()
        yield
        if server.finetunes is not None:
            await asyncio.to_thread(stop_all, server.finetunes, STOP_SECONDS)
        await asyncio.to_thread(server.engine.queue.drain, DRAIN_SECONDS)
        await asyncio.to_thread(server.engine.close)
        server.worker.close()
        server.files.close()

    app = FastAPI(
        title="latentdiff",
        version=latentdiff.__version__,
        description="Text-to-image diffusion with batching between steps.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    app.add_middleware(Guard, server=server)
    if server.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.settings.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    for router in (
        part.router
        for part in (operations, jobs, openai, openai_edits, a1111, a1111_lists, a1111_extras, finetunes, page)
    ):
        app.include_router(router)
    app.add_exception_handler(LatentDiffError, _answer_error)
    app.add_exception_handler(OSError, _answer_os_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_error)
    return app


async def _answer_error(http: Request, error: Exception) -> JSONResponse:
    serving = as_serving_error(error)
    return JSONResponse(error_body(http.url.path, serving), serving.status, serving.headers)


async def _answer_os_error(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    log.error("file_failed", extra={"fields": {"error": str(error)}})
    problem = InternalError(f"the server could not use a file ({error.strerror}); check its disk space and permissions")
    return JSONResponse(error_body(http.url.path, problem), problem.status)


async def _answer_validation(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    names = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = (".".join(names) or None) if first["type"] != "json_invalid" else None
    advice = "" if param else "; send a JSON object with Content-Type: application/json"
    invalid = InvalidRequestError(f"{param or 'body'}: {first['msg']}{advice}", param)
    if http.url.path.startswith("/v1/"):
        invalid.status = 400
    return JSONResponse(error_body(http.url.path, invalid), invalid.status)


async def _answer_http(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    serving = ServingError(f"{http.method} {http.url.path[:200]}: {error.detail}")
    serving.status, serving.code = error.status_code, "http_error"
    return JSONResponse(error_body(http.url.path, serving), error.status_code, error.headers)
