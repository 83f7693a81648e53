"""The endpoint for clients: fixes seeds, forwards requests to replicas, and repeats the unfinished requests of a dead
replica.
"""

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError, RayError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentdiff.sampling.seeds import GENERATOR_SEEDS

MAX_IMAGES = 16  # of a request; image k uses seed + k
TRIES = 5
KEPT_JOBS = 1000
DROPPED_HEADERS = {b"content-length", b"transfer-encoding", b"connection"}
SEEDED = ("/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img")
UNSHARED = ("/sdapi/v1/options", "/sdapi/v1/interrupt", "/sdapi/v1/skip", "/sdapi/v1/progress")


def with_seed(path: str, body: bytes) -> bytes:
    """The body of a JSON request with a seed, so that every attempt generates the same image; other bodies are
    unchanged.
    """
    values = fields(body)
    if path not in SEEDED or not values or values.get("seed") not in (None, -1):
        return body
    return json.dumps(values | {"seed": secrets.randbelow(GENERATOR_SEEDS - MAX_IMAGES)}).encode()


def fields(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object; empty for other bodies, which the replica refuses."""
    try:
        values = json.loads(body)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


async def repeated(call: Callable[[], Any]) -> Any:
    """The response of a replica; if it dies, the request is repeated on another one. Raises RayActorError after the
    last attempt.
    """
    for left in reversed(range(TRIES)):
        try:
            return await call()
        except RayActorError:
            if not left:
                raise
            await asyncio.sleep(0.2)
    raise AssertionError


@dataclass
class Job:
    """An accepted job. state, images: from the replica that finished it."""

    body: bytes
    task: asyncio.Task[None] | None = None
    state: dict[str, Any] = field(default_factory=lambda: {"status": "running"})
    images: list[bytes] = field(default_factory=list)


class Ingress:
    """Jobs are stored here, so that they survive their replica. workers: a handle of `Worker`."""

    def __init__(self, workers: Any) -> None:
        self.workers = workers
        self.jobs: OrderedDict[str, Job] = OrderedDict()

    async def __call__(self, http: Request) -> Response:
        """Called by Ray Serve for each request."""
        try:
            match (http.method, *http.url.path.strip("/").split("/")):
                case ("POST", "jobs"):
                    return self._submit(await http.body())
                case ("GET", "jobs", job_id):
                    return JSONResponse(self._shown(job_id))
                case ("DELETE", "jobs", job_id):
                    return self._delete(job_id)
                case ("GET", "jobs", job_id, "images", index):
                    return self._image(job_id, index)
            return await self._forward(http)
        except HTTPException as error:
            return JSONResponse({"error": {"message": error.detail}}, error.status_code, error.headers)

    def _submit(self, body: bytes) -> Response:
        """Accept a job. Errors in the request become the job's error instead of the response to this request."""
        if len(self.jobs) >= KEPT_JOBS:
            over = (name for name, job in self.jobs.items() if job.task and job.task.done())
            if (oldest := next(over, None)) is None:
                raise HTTPException(429, f"{KEPT_JOBS} jobs are unfinished; try again in 10 s", {"Retry-After": "10"})
            del self.jobs[oldest]
        job_id, job = secrets.token_urlsafe(16), Job(with_seed("/jobs", body))
        self.jobs[job_id] = job
        job.task = asyncio.create_task(self._run(job))
        return JSONResponse(self._shown(job_id), 202)

    async def _run(self, job: Job) -> None:
        while True:
            try:
                answer, images = await repeated(lambda: self.workers.run_job.remote(job.body))
            except RayError as error:
                job.state = {"status": "failed", "error": {"message": str(error)[:500]}}
                return
            if answer.status != 429:
                break
            await asyncio.sleep(1.0)  # the replica's queue is full
        job.images = images
        job.state = json.loads(answer.body) if answer.status < 400 else {"status": "failed", **json.loads(answer.body)}

    def _image(self, job_id: str, index: str) -> Response:
        images = self._find(job_id).images
        if not index.isdecimal() or int(index) >= len(images):
            raise HTTPException(404, "this image is not finished, or does not exist")
        return Response(images[int(index)], media_type="image/png")

    def _delete(self, job_id: str) -> Response:
        """Forget a job. A replica that is working on it continues."""
        state = self._shown(job_id)
        del self.jobs[job_id]
        return JSONResponse(state)

    async def _forward(self, http: Request) -> Response:
        """All other requests, which a replica handles."""
        path = http.url.path
        if path in UNSHARED or path.startswith(("/v1/files/", "/internal/", "/jobs/")):
            raise HTTPException(501, f"{path} needs the state of a single server; use the jobs API")
        body = with_seed(path, await http.body())
        if path in SEEDED and fields(body).get("stream"):
            raise HTTPException(400, "stream is not supported by this deployment; omit it")
        query, headers = http.url.query.encode(), [pair for pair in http.headers.raw if pair[0] not in DROPPED_HEADERS]
        answer = await repeated(lambda: self.workers.call.remote(http.method, path, query, headers, body))
        response = Response(answer.body, answer.status)
        kept = [pair for pair in answer.headers if pair[0] not in DROPPED_HEADERS]
        response.raw_headers = [*kept, (b"content-length", str(len(answer.body)).encode())]
        return response

    def _find(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise HTTPException(404, "this job is unknown")
        return self.jobs[job_id]

    def _shown(self, job_id: str) -> dict[str, Any]:
        job = self._find(job_id)
        images = [{"url": f"/jobs/{job_id}/images/{k}"} for k in range(len(job.images))]
        return job.state | {"id": job_id, "images": images, "seed": fields(job.body).get("seed")}
