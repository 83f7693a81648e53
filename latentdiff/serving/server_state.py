"""The state shared by the HTTP routes: the engine, limits, finished jobs and files; and the conversion of requests to
jobs.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from PIL import Image

from latentdiff.checkpoints.lora_stack import weight_pair
from latentdiff.errors import check_integer, shorten
from latentdiff.hires import Hires
from latentdiff.inputs import read_inputs
from latentdiff.inputs.model_limits import ModelLimits
from latentdiff.inputs.prompts import ImagePrompts
from latentdiff.sampling.seeds import GENERATOR_SEEDS
from latentdiff.serving.engine import Engine
from latentdiff.serving.errors import DeadlineError, NotFoundError, as_serving_error
from latentdiff.serving.files import ResultFiles
from latentdiff.serving.finetunes.folder import FineTunes
from latentdiff.serving.job import ImageRequest, Job, JobImage
from latentdiff.serving.limits import Limits
from latentdiff.serving.worker import Worker
from latentdiff.text.prompt_syntax import split_and

Size = tuple[int, int]
P = ParamSpec("P")
T = TypeVar("T")
KEPT_SECONDS = 3600.0
KEPT_PIXELS = 128 * 2**20  # of finished jobs, in results and inputs; three bytes each
KEPT_JOBS = 1000
DISCONNECT_SECONDS = 0.25  # between checks whether a waiting client is still connected


@dataclass(frozen=True)
class Settings:
    """Who may call a server.

    key: required from every client unless it is None. origins: the web pages that may call this server (CORS). hosts:
    the names of this server, which are checked against DNS rebinding if there is no key.
    """

    key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class Server:
    """One server; the routes find it at `request.app.state.server`.

    finished: jobs of our own API by id. tasks: jobs of A1111's API by task id. a1111_model: the model that its clients
    selected. finetunes: None unless clients may fine-tune. worker: for tensor computations outside the engine.
    """

    engine: Engine
    settings: Settings = field(default_factory=Settings)
    files: ResultFiles = field(default_factory=ResultFiles)
    finished: OrderedDict[str, Job] = field(default_factory=OrderedDict)
    tasks: OrderedDict[str, Job] = field(default_factory=OrderedDict)
    a1111_model: str = ""
    finetunes: FineTunes | None = None
    worker: Worker = field(default_factory=lambda: Worker("latentdiff-worker"))

    def __post_init__(self) -> None:
        self.a1111_model = self.engine.models.default

    @property
    def limits(self) -> Limits:
        return self.engine.limits

    async def model_limits(self, model: str, images: int = 1) -> ModelLimits:
        """The properties of a model that arguments depend on; loads the model if it has never been loaded.

        images: the number of images of the waiting request, which count towards the queue's limit meanwhile. Raises the
        errors of loading, QueueFullError and DeadlineError.
        """
        models, deadline = self.engine.models, time.monotonic() + self.limits.deadline
        if model not in models.facts:
            with self.engine.queue.reserve(images):
                while model not in models.facts:
                    try:
                        models.get(model)
                    except Exception as error:
                        raise as_serving_error(error) from error
                    if time.monotonic() > deadline:
                        raise DeadlineError(f"{model} was not loaded within the deadline of {self.limits.deadline:g} s")
                    await asyncio.sleep(0.02)
        return models.facts[model].limits

    async def request(
        self,
        prompt: str,
        model: str | None = None,
        images: int = 1,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        negative_prompt: str | None = None,
        loras: Mapping[str, Any] | None = None,
        variation_seed: int | None = None,
        variation_strength: float | None = None,
        hires: Hires | None = None,
        **settings: Any,
    ) -> ImageRequest:
        """A request, with the model's defaults for settings that are not given; `loras` includes those that the prompt
        names.

        settings: further arguments of `read_inputs`. Raises ServingError and InputError.
        """
        self._check_counts(prompt, negative_prompt, images)
        self.engine.queue.check_room(images)
        model = self.engine.models.find(model)
        model_limits = await self.model_limits(model, images)
        steps = model_limits.generation.num_inference_steps if steps is None else steps
        size = _expected_size(model_limits, width, height, settings.get("image"))
        self.limits.check("steps", steps, self.limits.steps)
        self._check_pixels("width*height", size)
        request = ImageRequest(
            model=model,
            prompt=prompt,
            negative_prompt=negative_prompt or None,
            images=images,
            **self._seeds(seed, variation_seed, variation_strength),
            height=height,
            width=width,
            size=size,
            steps=steps,
            guidance_scale=model_limits.generation.guidance_scale if guidance_scale is None else guidance_scale,
            sampler=sampler or model_limits.generation.sampler,
            settings={key: value for key, value in settings.items() if value is not None},
            hires=hires,
        )
        run = self.compute if "image" in request.settings else asyncio.to_thread  # parsing prompts needs no tensors
        return await run(self._completed, request, model_limits, loras or {})

    async def decode(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Decode uploads by `work`, on another thread. Raises QueueFullError before any work for it."""
        self.engine.queue.check_room(1)
        return await asyncio.to_thread(work, *args, **kwargs)

    async def compute(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run tensor computations; for other work, use `asyncio.to_thread` (see `Worker`)."""
        return await asyncio.wrap_future(self.worker.submit(partial(work, *args, **kwargs)))

    def _check_counts(self, prompt: str, negative_prompt: str | None, images: int) -> None:
        for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            self.limits.check(f"{name} length", len(text or ""), self.limits.prompt_characters, "characters")
        self.limits.check("images", check_integer(images, "images", 1), self.limits.images)

    def _check_joined(self, prompts: ImagePrompts) -> None:
        if prompts.options.syntax != "plain":
            joined = len(split_and(prompts.positives[0][0]))
            self.limits.check("prompt parts joined by AND", joined, self.limits.joined_prompts)

    def _check_pixels(self, name: str, size: Size) -> None:
        self.limits.check(name, size[0] * size[1], self.limits.pixels, "pixels")

    def _seeds(self, seed: int | None, variation_seed: int | None, strength: float | None) -> dict[str, Any]:
        """Choose random seeds if none are given; a variation of strength 0 is no variation."""
        if strength == 0:
            variation_seed = strength = None
        elif strength and variation_seed is None:
            variation_seed = self._random_seed()
        seed = self._random_seed() if seed is None else seed
        return {"seed": seed, "variation_seed": variation_seed, "variation_strength": strength}

    def _completed(self, request: ImageRequest, model_limits: ModelLimits, loras: Mapping[str, Any]) -> ImageRequest:
        """The request with the sampled size, and with the LoRAs in its prompt added to `loras`."""
        inputs = read_inputs(model_limits, **request.arguments(request.images - 1))
        self._check_joined(inputs.prompts)
        size = inputs.width, inputs.height
        self._check_pixels("width*height", size)
        found = self._loras({**loras, **inputs.prompts.loras})
        if (hires := request.hires) is None:
            return replace(request, size=size, loras=found)
        enlarged = hires.enlarged_size(size, model_limits.downscale)
        self._check_pixels("width*height of the second pass", enlarged)
        self.limits.check("hires_steps", hires.steps or 0, self.limits.steps)
        return replace(request, size=size, loras=found, hires_size=enlarged)

    def _random_seed(self) -> int:
        return secrets.randbelow(GENERATOR_SEEDS - self.limits.images)

    def _loras(self, loras: Mapping[str, Any]) -> tuple[tuple[str, tuple[float, float]], ...]:
        find = self.engine.models.find_lora
        pairs = [(find(name), weight_pair(weight, name)) for name, weight in loras.items()]
        return tuple(sorted((name, pair) for name, pair in pairs if pair != (0.0, 0.0)))

    def keep(self, job: Job) -> None:
        """Keep a job after its end, for an hour and within limits on the number of jobs and pixels."""
        self.finished[job.id] = job
        total = sum(_pixels(other) for other in self.finished.values())
        for oldest in list(self.finished.values()):
            expired = oldest.ended_at is not None and time.monotonic() - oldest.ended_at > KEPT_SECONDS
            full = total > KEPT_PIXELS or len(self.finished) > KEPT_JOBS
            if oldest is job or not (expired or (oldest.over and full)):
                continue
            total -= _pixels(self.finished.pop(oldest.id))

    @property
    def uncollected(self) -> bool:
        """Whether there are images of our own API, or files of `url` responses, that no client has fetched yet."""
        jobs = list(self.finished.values())
        files = self.files.expected or self.files.uncollected
        return bool(files) or any(job.over and job.images and not job.collected for job in jobs)

    def find_job(self, job_id: str) -> Job:
        """A job by its id. Raises NotFoundError."""
        if job_id not in self.finished:
            raise NotFoundError(f"job {shorten(job_id)} is unknown; jobs are kept for an hour after they end")
        return self.finished[job_id]

    async def wait(self, job: Job, http: Request) -> list[JobImage]:
        """The images of a job; it is cancelled if the client disconnects. Raises the job's error."""
        async for _ in job.changes(DISCONNECT_SECONDS):
            if not job.over and await http.is_disconnected():
                self.engine.cancel(job)
        return job.result()


def _pixels(job: Job) -> int:
    width, height = job.request.output_size
    inputs = (value for value in job.request.settings.values() if isinstance(value, Image.Image))
    return width * height * len(job.done) + sum(image.width * image.height for image in inputs)


def _expected_size(model: ModelLimits, width: int | None, height: int | None, image: Image.Image | None) -> Size:
    if image is not None:
        return width or image.width, height or image.height
    return width or model.default_size, height or model.default_size


def server_of(http: Request) -> Server:
    """The server that an HTTP request reached, for FastAPI's Depends."""
    server = http.app.state.server
    assert isinstance(server, Server)
    return server
