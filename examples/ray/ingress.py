"""The address that clients call: fixes seeds, forwards to replicas, and repeats what a dead replica left undone."""

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from ray.exceptions import RayError

from examples.ray.worker import Answer
from latentdiff.seeds import GENERATOR_SEEDS

MAX_IMAGES = 16  # of a request; image k is drawn from seed + k
TRIES = 5
KEPT_JOBS = 1000
DROPPED_HEADERS = {b"content-length", b"transfer-encoding", b"connection"}
SEEDED = ("/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img")
UNSHARED = ("/sdapi/v1/options", "/sdapi/v1/interrupt", "/sdapi/v1/skip", "/sdapi/v1/progress")
api = FastAPI(title="latentdiff on Ray Serve", docs_url=None, redoc_url=None)


def with_seed(path: str, body: bytes) -> bytes:
    """The body of a JSON request with a seed, so that every try makes the same image; others as they are."""
    if path not in SEEDED:
        return body
    try:
        values = json.loads(body)
    except ValueError:
        return body
    if isinstance(values, dict) and (values.get("seed") is None or values["seed"] == -1):
        values["seed"] = secrets.randbelow(min(GENERATOR_SEEDS, 2**53) - MAX_IMAGES)
    return json.dumps(values).encode()


async def repeated(call: Callable[[], Any]) -> Any:
    """What a replica answers; repeated on another when it dies. Raises RayError after the last try."""
    for left in reversed(range(TRIES)):
        try:
            return await call()
        except RayError:
            if not left:
                raise
            await asyncio.sleep(0.2)
    raise AssertionError


@dataclass
class Job:
    """A job that was accepted here. state, images: what the replica that finished it answered."""

    body: bytes
    task: asyncio.Task[None] | None = None
    state: dict[str, Any] = field(default_factory=lambda: {"status": "running"})
    images: list[bytes] = field(default_factory=list)


class Ingress:
    """Jobs live here, so that they survive their replica. workers: a handle of `Worker`."""

    def __init__(self, workers: Any) -> None:
        self.workers = workers
        self.jobs: OrderedDict[str, Job] = OrderedDict()

    @api.post("/jobs", status_code=202)
    async def submit(self, http: Request) -> dict[str, Any]:
        """Accept a job. Mistakes in it are its error, and not an answer to this request."""
        job_id, job = secrets.token_urlsafe(16), Job(with_seed("/jobs", await http.body()))
        for old in [name for name, other in self.jobs.items() if other.task and other.task.done()]:
            if len(self.jobs) >= KEPT_JOBS:
                del self.jobs[old]
        if len(self.jobs) >= KEPT_JOBS:
            raise HTTPException(429, "too many unfinished jobs", {"Retry-After": "10"})
        self.jobs[job_id] = job
        job.task = asyncio.create_task(self._run(job))
        return self._shown(job_id, job)

    async def _run(self, job: Job) -> None:
        answer: Answer
        while True:
            try:
                answer, images = await repeated(lambda: self.workers.run_job.remote(job.body))
            except RayError as error:
                job.state = {"status": "failed", "error": {"message": str(error)[:500]}}
                return
            if answer.status != 429:
                break
            await asyncio.sleep(1.0)  # every queue is full
        job.images = images
        job.state = json.loads(answer.body) if answer.status < 400 else {"status": "failed", **json.loads(answer.body)}

    @api.get("/jobs/{job_id}")
    async def show(self, job_id: str) -> dict[str, Any]:
        """How far a job is: running, finished or failed."""
        return self._shown(job_id, self._find(job_id))

    @api.get("/jobs/{job_id}/images/{index}")
    async def image(self, job_id: str, index: int) -> Response:
        """A finished image as a PNG."""
        if not 0 <= index < len(images := self._find(job_id).images):
            raise HTTPException(404, "this image is not finished, or does not exist")
        return Response(images[index], media_type="image/png")

    @api.delete("/jobs/{job_id}")
    async def delete(self, job_id: str) -> dict[str, Any]:
        """Forget a job. A replica that works on it goes on."""
        job = self._find(job_id)
        del self.jobs[job_id]
        return self._shown(job_id, job)

    @api.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(self, path: str, http: Request) -> Response:
        """Anything else, answered by a replica."""
        path, body = f"/{path}", await http.body()
        if path in UNSHARED or path.startswith(("/v1/files/", "/internal/")):
            raise HTTPException(501, f"{path} is the state of one server; use the jobs API with several")
        if b'"stream"' in body and json.loads(body).get("stream"):
            raise HTTPException(400, "stream is not supported by this deployment; leave it out")
        query, headers, body = http.url.query.encode(), list(http.headers.raw), with_seed(path, body)
        headers = [(key, value) for key, value in headers if key not in DROPPED_HEADERS]
        answer = await repeated(lambda: self.workers.call.remote(http.method, path, query, headers, body))
        response = Response(answer.body, answer.status)
        response.raw_headers = [
            *((key, value) for key, value in answer.headers if key not in DROPPED_HEADERS),
            (b"content-length", str(len(answer.body)).encode()),
        ]
        return response

    def _find(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise HTTPException(404, "this job is unknown")
        return self.jobs[job_id]

    def _shown(self, job_id: str, job: Job) -> dict[str, Any]:
        images = [{"url": f"/jobs/{job_id}/images/{k}"} for k in range(len(job.images))]
        return job.state | {"id": job_id, "images": images, "seed": json.loads(job.body).get("seed")}
