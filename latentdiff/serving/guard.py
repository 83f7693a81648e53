"""Middleware of all routes: request ids, authorisation, body size limit, log line and request count."""

import asyncio
import base64
import hmac
import json
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentdiff.serving.dialects import error_body
from latentdiff.serving.errors import BodyTooLargeError, ForbiddenError, ServingError, UnauthorizedError
from latentdiff.serving.server_state import Server

log = logging.getLogger("latentdiff.serving")
OPEN_PATHS = ("/healthz", "/readyz")
DRAIN_BYTES, DRAIN_SECONDS = 2**26, 2.0


class Guard:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        exchange = _Exchange(scope, send, headers.get("x-request-id", "")[:64] or secrets.token_hex(8))
        try:
            self._check_origin(scope, headers)
            self._check_key(scope, headers)
            await self.app(scope, self._bounded(headers, receive), exchange.send)
        except ServingError as error:
            await _drain(receive)
            await exchange.refuse(error)
        finally:
            exchange.finish(self.server)
        return None

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        """Web pages of other sites must not use a server on the visitor's machine."""
        host, origin = headers.get("host", ""), headers.get("origin")
        name = (host.rsplit(":", 1)[0] if not host.endswith("]") else host).lower()
        if self.server.settings.key is None and name not in self.server.settings.hosts:
            raise ForbiddenError(
                f"host {name[:80]!r} is not a name of this server; use {self.server.settings.hosts[0]}"
            )
        allowed = {*self.server.settings.origins}
        if origin is not None and not allowed & {origin, "*"} and urlsplit(origin).netloc != host:
            raise ForbiddenError(f"origin {origin[:80]!r} may not call this server; start it with --cors-origin")

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> None:
        key = self.server.settings.key
        page = scope["path"] in ("/", "/train") or scope["path"].startswith("/page/")  # it prompts for the key
        if key is None or scope["path"] in OPEN_PATHS or page or scope["method"] == "OPTIONS":
            return
        if not any(hmac.compare_digest(one, key.encode()) for one in _keys(headers.get("authorization", ""))):
            challenge = {"WWW-Authenticate": 'Basic realm="latentdiff"'} if _speaks_basic(scope["path"]) else {}
            raise UnauthorizedError("a key is required: Authorization: Bearer KEY, or Basic with the key as password",
                                    headers=challenge)  # fmt: skip

    def _bounded(self, headers: dict[str, str], receive: Receive) -> Receive:
        limit = self.server.limits.body
        problem = f"the request body is above this server's limit of {limit} bytes; send less"
        if (length := headers.get("content-length", "")).isdecimal() and int(length) > limit:
            raise BodyTooLargeError(problem)
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, problem)  # the one exception that FastAPI's body reading lets through
            return message

        return bounded


async def _drain(receive: Receive) -> None:
    """Read the body before refusing it: a connection that is closed with unread data is reset, and the response is
    lost.
    """
    received, more = 0, True
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and received < DRAIN_BYTES:
                message = await receive()
                received += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        return


class _Exchange:
    """One request and its response: adds the request id, and records the status."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self.scope, self._send, self.request_id = scope, send, request_id
        self.began, self.status = time.monotonic(), 0
        scope["request_id"] = request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            seconds = time.monotonic() - self.began
            extra = {"x-request-id": self.request_id, "x-process-time": f"{seconds:.4f}"}
            message["headers"] = [*message.get("headers", []), *_encoded(extra)]
        await self._send(message)

    async def refuse(self, error: ServingError) -> None:
        if self.status:  # the response has started
            return
        body = json.dumps(error_body(self.scope["path"], error)).encode()
        headers = {"content-type": "application/json", "connection": "close", **error.headers}
        await self.send({"type": "http.response.start", "status": error.status, "headers": _encoded(headers)})
        await self.send({"type": "http.response.body", "body": body})

    def finish(self, server: Server) -> None:
        route = getattr(self.scope.get("route"), "path", "other")
        server.engine.metrics.requests.labels(route, str(self.status)).inc()
        fields = {"request": self.request_id, "method": self.scope["method"], "path": self.scope["path"][:200]}
        seconds = round(time.monotonic() - self.began, 4)
        log.info("request", extra={"fields": fields | {"status": self.status, "seconds": seconds}})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(key.lower().encode("latin-1"), value.encode("latin-1", "replace")) for key, value in headers.items()]


def _keys(authorization: str) -> list[bytes]:
    """The possible keys in an Authorization header: a bearer token, or with Basic the password or user:password."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return [value.strip().encode("latin-1")]  # as it was decoded
    try:
        pair = base64.b64decode(value, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return []
    return [pair, pair.partition(b":")[2]]


def _speaks_basic(path: str) -> bool:
    return path.startswith(("/sdapi/", "/internal/"))
