"""One replica: a latentdiff engine with its HTTP application, called within the process."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from latentdiff.serving.app import create_app
from latentdiff.serving.engine import Engine
from latentdiff.serving.models import ModelSpec, ModelStore
from latentdiff.serving.server_state import Server

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Headers
    body: bytes


class Worker:
    """Handles requests to latentdiff's APIs. model: a path; None for the bundled model."""

    def __init__(self, model: str | None, device: str = "auto") -> None:
        engine = Engine(ModelStore([ModelSpec("model", model, {"device": device})]))
        self.server = Server(engine)
        self.app = create_app(self.server)
        engine.start()

    async def check_health(self) -> None:
        """Called by Ray Serve; raises while no model is loaded, which delays the replica."""
        while not self.server.engine.ready:
            await asyncio.sleep(0.1)

    async def call(self, method: str, path: str, query: bytes, headers: Headers, body: bytes) -> Answer:
        """Handle one request as the server would over a socket."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "query_string": query,
            "headers": [*((key, value) for key, value in headers if key != b"host"), (b"host", b"localhost")],
        }
        requests = iter([{"type": "http.request", "body": body}])
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if (message := next(requests, None)) is not None:
                return message
            return await asyncio.Event().wait()  # type: ignore[return-value]  # the client stays connected

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)  # type: ignore[arg-type]
        parts = [message.get("body", b"") for message in sent[1:]]
        return Answer(sent[0]["status"], list(sent[0]["headers"]), b"".join(parts))

    async def run_job(self, body: bytes) -> tuple[Answer, list[bytes]]:
        """A job of our own API from its acceptance to its end: the last state, and the images."""
        json_type = [(b"content-type", b"application/json")]
        state = await self.call("POST", "/jobs", b"", json_type, body)
        if state.status != 202:
            return state, []
        path = f"/jobs/{json.loads(state.body)['id']}"
        job = self.server.find_job(path.removeprefix("/jobs/"))
        async for _ in job.changes():
            pass
        images = [await self.call("GET", f"{path}/images/{k}", b"", [], b"") for k in sorted(job.images)]
        return await self.call("GET", path, b"", [], b""), [image.body for image in images]
