"""A job: the request, its progress and its images. The engine updates it, and any number of clients can watch it."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from PIL import Image
from torch import Tensor

from latentdiff.hires import Hires
from latentdiff.serving.errors import CancelledError, ServingError

Loras = tuple[tuple[str, tuple[float, float]], ...]
"""Name and weights (U-Net, text encoders) of each LoRA, sorted by name."""


@dataclass(frozen=True)
class ImageRequest:
    """Images to generate: image k uses seed + k; with a variation, seed and variation_seed + k.

    height, width: as given; None if the input image determines them. size: (width, height) that is sampled. settings:
    further arguments of `inputs.read_inputs`, including those of image to image. hires: a second pass at `hires_size`.
    """

    model: str
    prompt: str
    seed: int
    height: int | None
    width: int | None
    size: tuple[int, int]
    steps: int
    guidance_scale: float
    sampler: str
    negative_prompt: str | None = None
    images: int = 1
    loras: Loras = ()
    settings: dict[str, Any] = field(default_factory=dict)
    variation_seed: int | None = None
    variation_strength: float | None = None
    hires: Hires | None = None
    hires_size: tuple[int, int] | None = None

    @property
    def output_size(self) -> tuple[int, int]:
        """(width, height) at which the last pass is sampled."""
        return self.hires_size or self.size

    def seeds(self, index: int) -> tuple[int, int | None]:
        """The seed of one image, and that of the noise mixed into it, if any."""
        if self.variation_strength is None or self.variation_seed is None:
            return self.seed + index, None
        return self.seed, self.variation_seed + index

    def arguments(self, index: int) -> dict[str, Any]:
        """The keyword arguments of `read_inputs` for one image."""
        seed, variation_seed = self.seeds(index)
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "seed": seed,
            "variation_seed": variation_seed,
            "variation_strength": self.variation_strength,
            "sampler": self.sampler,
        } | self.settings


class Status(StrEnum):
    """The status of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobImage:
    """One finished image of a job.

    stopped: sampling ended early, and the image is the last prediction. checked: the result of the content check, with
    the field names of `Recipe`.
    """

    image: Image.Image
    seed: int
    variation_seed: int | None = None
    stopped: bool = False
    checked: dict[str, Any] = field(default_factory=dict)


class Job:
    """One accepted request, its progress and its images.

    done: evaluations of each image so far, out of `total`. x0: the newest prediction [C, h, w] of each image, for
    previews. partials: predictions of the first image at the evaluations in `keep_at`. finishing: images handed to
    `Finisher`. interrupted: whether `stop` has taken effect. failure: an error in another thread, with which the engine
    ends the job. collected: whether a client fetched an image. blurs_previews: whether previews are blurred, because
    the content checker blurs or refuses images.
    """

    def __init__(self, request: ImageRequest, deadline: float, keep_at: tuple[int, ...] = ()) -> None:
        self.id = secrets.token_urlsafe(16)
        self.request, self.keep_at = request, keep_at
        self.created, self.accepted_at = int(time.time()), time.monotonic()
        self.deadline = self.accepted_at + deadline
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.status = Status.QUEUED
        self.total = request.steps
        self.done = [0] * request.images
        self.x0: dict[int, Tensor] = {}
        self.partials: list[Tensor] = []
        self.images: dict[int, JobImage] = {}
        self.error: ServingError | None = None
        self.failure: ServingError | None = None
        self.stopping = self.interrupted = self.cancelling = False
        self.collected = self.blurs_previews = False
        self.finishing = 0
        self._expected = request.images
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        """Whether the status is final."""
        return self._over.is_set()

    @property
    def progress(self) -> float:
        """0 to 1, over all images."""
        return 1.0 if self.over else sum(self.done) / max(1, self.total * len(self.done))

    def eta(self) -> float | None:
        """Seconds that remain at the mean speed so far; None before the first step."""
        if self.started_at is None or not (done := self.progress):
            return None
        return (time.monotonic() - self.started_at) * (1 - done) / done

    def cancel(self) -> None:
        """Cancel the job; it leaves its batch before the next step."""
        self.cancelling = True

    def stop(self) -> None:
        """Interrupt the job: the predictions of started images are decoded, and no others are started."""
        self.stopping = True

    def wait(self, timeout: float | None = None) -> list[JobImage]:
        """The images, in order. Raises the job's error, and TimeoutError."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"job {self.id} is still {self.status}")
        return self.result()

    def result(self) -> list[JobImage]:
        """The images of a job that has ended, in order. Raises its error."""
        if self.error is not None:
            raise self.error
        return [self.images[k] for k in sorted(self.images)]

    async def changes(self, interval: float | None = None) -> AsyncIterator[None]:
        """Yields immediately, after changes, and every `interval` seconds, until the job ends; slow readers skip
        changes.
        """
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def listen() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(event.set)

        self._listeners.append(listen)
        try:
            while True:
                event.clear()
                over = self.over
                yield
                if over:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), interval)
        finally:
            self._listeners.remove(listen)

    def begin(self) -> None:
        """The engine starts the first image."""
        if self.status is Status.QUEUED:
            self.status, self.started_at = Status.RUNNING, time.monotonic()

    def advance(self, index: int, evaluations: int, total: int, x0: Tensor) -> None:
        """The engine completed an evaluation for an image."""
        self.done[index], self.total, self.x0[index] = evaluations, total, x0
        if index == 0 and evaluations in self.keep_at:
            self.partials.append(x0)
        self.notify()

    def deliver(self, index: int, image: JobImage) -> None:
        """An image is decoded; the last one ends the job."""
        with self._lock:
            if self.over:
                return
            self.images[index] = image
            if len(self.images) >= self._expected:
                self._end(Status.FINISHED)
        self.notify()

    def expect(self, images: int) -> None:
        """Only this many images will be generated. If there are none, the job ends as cancelled."""
        with self._lock:
            if self.over:
                return
            self._expected = images
            if not images:
                self.error = CancelledError("the job was interrupted before its first step")
                self._end(Status.CANCELLED)
            elif len(self.images) >= images:
                self._end(Status.FINISHED)
        self.notify()

    def fail(self, error: ServingError) -> None:
        """End without a result, unless the job has already ended."""
        with self._lock:
            if self.over:
                return
            self.error = error
            self._end(Status.CANCELLED if isinstance(error, CancelledError) else Status.FAILED)
        self.notify()

    def release(self) -> None:
        """Delete images and inputs, but keep the final status."""
        self.images.clear()
        self.partials.clear()
        self.request = replace(self.request, settings={})

    def _end(self, status: Status) -> None:
        self.status, self.ended_at = status, time.monotonic()
        self.x0.clear()
        self._over.set()

    def notify(self) -> None:
        """Notify the watchers."""
        for listener in list(self._listeners):
            listener()
