"""Continuous batching of diffusion steps: images join and leave a batch at any step, each at its own position.

One thread owns the networks. Groups of images that cannot share a batch take turns. Images are decoded on another
thread, one at a time, so that decoding does not hold up steps.
"""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from latentdiff.errors import InputError, NonFiniteError
from latentdiff.inputs import read_inputs
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.serving.errors import (
    CancelledError,
    DeadlineError,
    InternalError,
    QueueFullError,
    ServingError,
    UnavailableError,
    as_serving_error,
)
from latentdiff.serving.group import MAX_ROWS, Group, GroupKey, Picture
from latentdiff.serving.job import ImageRequest, Job, JobImage
from latentdiff.serving.limits import Limits
from latentdiff.serving.metrics import Metrics
from latentdiff.serving.models import ModelStore

log = logging.getLogger("latentdiff.serving")
TURN_SECONDS = 0.5  # of a group while others wait: long enough to be worth changing LoRAs


class Engine:
    """Accepts jobs from any thread and samples them on its own.

    exact_batch: pad every batch to this many network evaluations, so that an image has the same bits under any load.
    """

    def __init__(
        self,
        models: ModelStore,
        limits: Limits | None = None,
        exact_batch: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if exact_batch is not None and exact_batch < 2:
            raise InputError(
                f"exact_batch={exact_batch} must be at least 2, since guidance takes two evaluations; try 8"
            )
        self.models, self.limits, self.exact_batch = models, limits or Limits(), exact_batch
        self.metrics = metrics or Metrics()
        self._groups: dict[GroupKey, Group] = {}
        self._jobs: dict[str, Job] = {}
        self._current: Group | None = None
        self._turn_began = 0.0
        self._seconds_per_image = 1.0
        self._accepting = True
        self._closed = False
        self._changed = threading.Condition()
        self._decoder = ThreadPoolExecutor(1, "latentdiff-decoder")
        self._thread = threading.Thread(target=self._run, name="latentdiff-engine", daemon=True)
        models.on_change, models.in_use = self._wake, self._models_in_use

    def start(self) -> None:
        """Start the thread, and load the default model."""
        self.models.get(self.models.default)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are accepted and a model is loaded."""
        return self._accepting and bool(self.models.loaded)

    @property
    def jobs(self) -> list[Job]:
        """Jobs that are not over, in order of arrival."""
        with self._changed:
            return list(self._jobs.values())

    @property
    def waiting(self) -> int:
        """Images accepted and not yet started."""
        with self._changed:
            return sum(len(group.waiting) for group in self._groups.values())

    def submit(self, request: ImageRequest, deadline: float | None = None, keep_at: tuple[int, ...] = ()) -> Job:
        """Accept a job. Raises InputError, QueueFullError, and UnavailableError when the server is stopping."""
        if (facts := self.models.facts.get(request.model)) is not None and "image" not in request.settings:
            read_inputs(facts.limits, **request.arguments(request.images - 1))
        job = Job(request, min(deadline or self.limits.deadline, self.limits.deadline), keep_at)
        key = GroupKey(request.model, request.loras, request.size)
        with self._changed:
            if not self._accepting:
                raise UnavailableError("the server is stopping; send the request to another one")
            unfinished = sum(len(other.done) - len(other.images) for other in self._jobs.values())
            if unfinished + request.images > self.limits.queue + MAX_ROWS:
                raise self._full(unfinished)
            self._jobs[job.id] = job
            group = self._groups.setdefault(key, Group(key))
            group.waiting.extend(Picture(job, k) for k in range(request.images))
            self._changed.notify_all()
        return job

    def _full(self, unfinished: int) -> QueueFullError:
        seconds = max(1, round(self._seconds_per_image * unfinished / 2))
        self.metrics.errors.labels("queue_full").inc()
        return QueueFullError(
            f"the queue is full: {unfinished} images are ahead, at most {self.limits.queue} may wait; "
            f"try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )

    def position(self, job: Job) -> int:
        """Jobs that arrived earlier and have not started either; 0 for one that has."""
        if job.started_at is not None or job.over:
            return 0
        earlier = [other for other in self.jobs if other.started_at is None]
        return earlier.index(job) + 1 if job in earlier else 0

    def cancel(self, job: Job) -> None:
        """Drop a job before the next step."""
        job.cancel()
        self._wake()

    def stop_jobs(self, jobs: list[Job]) -> None:
        """Finish jobs with what there is of them, before the next step."""
        for job in jobs:
            job.stop()
        self._wake()

    def drain(self, timeout: float | None = None) -> bool:
        """Accept nothing more and wait for the accepted jobs; returns whether all of them ended."""
        with self._changed:
            self._accepting = False
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """Stop the threads; jobs that are not over fail."""
        with self._changed:
            self._accepting, self._closed = False, True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._decoder.shutdown()
        self.models.close()
        for job in self.jobs:
            self._finish(job, UnavailableError("the server stopped"))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _models_in_use(self) -> set[str]:
        with self._changed:
            return {group.key.model for group in self._groups.values() if group.active}

    def _run(self) -> None:
        while True:
            self._end_jobs()
            with self._changed:
                if self._closed:
                    return
            if (chosen := self._next_group()) is None:
                with self._changed:
                    if not self._closed:
                        self._changed.wait(0.05 if self._jobs else 1.0)
                continue
            group, pipe = chosen
            with self._failing(group):
                self._use_loras(pipe, group)
                self._start_images(group, pipe)
                if group.active:
                    self._step(group, pipe)

    @contextmanager
    def _failing(self, group: Group) -> Iterator[None]:
        """Whatever is raised ends the jobs of this group, and nothing else."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, InputError):
                log.exception("step_failed")
            for job in {picture.job for picture in (*group.active, *group.waiting)}:
                self._finish(job, as_serving_error(error))

    def _end_jobs(self) -> None:
        """Take out what was cancelled, stopped, failed, or has passed its deadline."""
        now = time.monotonic()
        for job in self.jobs:
            if job.failure is not None:
                self._finish(job, job.failure)
            elif job.cancelling:
                self._finish(job, CancelledError("the job was cancelled"))
            elif now > job.deadline:
                seconds = job.deadline - job.accepted_at
                self._finish(job, DeadlineError(f"the job was not finished within its deadline of {seconds:g} s"))
            elif job.stopping:
                self._stop(job)

    def _stop(self, job: Job) -> None:
        """Decode what the model predicted for images that have begun, and do not start the others."""
        job.stopping = False
        for picture in self._take_out(job):
            if picture.pipe is not None and picture.x0 is not None:
                self._decode(picture.pipe, picture, picture.x0, stopped=True)
        job.expect(job.decoding)
        if job.over:
            self._forget(job)

    def _take_out(self, job: Job) -> list[Picture]:
        with self._changed:
            return [picture for group in self._groups.values() for picture in group.remove(job)]

    def _drop_empty_groups(self) -> None:
        for key in [key for key, group in self._groups.items() if not group.waiting and not group.active]:
            del self._groups[key]

    def _next_group(self) -> tuple[Group, LatentDiffusionPipeline] | None:
        """The current group until its turn is over, then the one whose turn is longest ago, of those that can step."""
        with self._changed:
            self._drop_empty_groups()
            groups = list(self._groups.values())
        ready = [(group, pipe) for group in groups if (pipe := self._ready(group)) is not None]
        now = time.monotonic()
        for group, pipe in ready:
            if group is self._current and (len(ready) == 1 or now - self._turn_began < TURN_SECONDS):
                return group, pipe
        if not ready:
            return None
        chosen = min((one for one in ready if one[0] is not self._current), key=lambda one: one[0].last_turn)
        if self._current is not None:
            self._current.last_turn = now
        self._current, self._turn_began = chosen[0], now
        return chosen

    def _ready(self, group: Group) -> LatentDiffusionPipeline | None:
        if not group.active and self.models.starts_no_images:
            return None
        try:
            return self.models.get(group.key.model)
        except Exception as error:
            for job in {picture.job for picture in (*group.active, *group.waiting)}:
                self._finish(job, as_serving_error(error))
            return None

    def _use_loras(self, pipe: LatentDiffusionPipeline, group: Group) -> None:
        wanted = dict(group.key.loras)
        if {name: pair for name, pair in pipe.adapters.items() if pair != (0.0, 0.0)} != wanted:
            pipe.set_adapters(wanted)

    def _start_images(self, group: Group, pipe: LatentDiffusionPipeline) -> None:
        while len(group.active) < MAX_ROWS and not self.models.starts_no_images:
            with self._changed:
                if not group.waiting:
                    return
                picture = group.waiting.popleft()
            job = picture.job
            try:
                inputs = read_inputs(pipe.limits, **job.request.arguments(picture.index))
                (picture.row,) = pipe.start(inputs)
            except Exception as error:
                if not isinstance(error, InputError):
                    log.exception("start_failed")
                self._finish(job, as_serving_error(error))
                continue
            if job.started_at is None:
                job.begin()
                self.metrics.queue_seconds.observe(time.monotonic() - job.accepted_at)
            picture.pipe, picture.canvases = pipe, inputs.canvases
            picture.first_position = picture.row.state.position
            if picture.row.state.finished:
                self._decode(pipe, picture, picture.row.result)
                continue
            with self._changed:
                group.active.append(picture)

    def _step(self, group: Group, pipe: LatentDiffusionPipeline) -> None:
        batch = group.next_batch(self.exact_batch)
        began = time.monotonic()
        rows, x0 = pipe.step([picture.row for picture in batch if picture.row], self.exact_batch)
        self.metrics.observe_step(len(batch), time.monotonic() - began)
        for picture, row, predicted in zip(batch, rows, x0, strict=True):
            picture.row, picture.x0 = row, predicted
            state, first = row.state, picture.first_position
            if state.finished:
                with self._changed:
                    group.active.remove(picture)
                self._decode(pipe, picture, row.result)
            picture.job.advance(picture.index, state.position - first, len(state.plan) - first, predicted)

    def _decode(self, pipe: LatentDiffusionPipeline, picture: Picture, latents: Tensor, stopped: bool = False) -> None:
        picture.job.decoding += 1
        self._decoder.submit(self._decode_now, pipe, picture, latents, stopped)

    def _decode_now(self, pipe: LatentDiffusionPipeline, picture: Picture, latents: Tensor, stopped: bool) -> None:
        job = picture.job
        if job.over or job.cancelling:
            return None
        began = time.monotonic()
        try:
            if not torch.isfinite(latents).all():
                raise NonFiniteError("the latents are not finite; serve the model with --dtype float32")
            (image,) = pipe.finish(latents[None], canvases=picture.canvases)
        except Exception as error:
            log.exception("decode_failed")
            job.failure = as_serving_error(error)
            return self._wake()
        self.metrics.decode_seconds.observe(time.monotonic() - began)
        self.metrics.images.inc()
        job.deliver(picture.index, JobImage(image, picture.seed, stopped))
        if job.over:
            self._forget(job)
        return None

    def _finish(self, job: Job, error: ServingError) -> None:
        if isinstance(error, InternalError):
            log.error("job_failed", extra={"fields": {"job": job.id, "error": str(error)}})
        self._take_out(job)
        job.fail(error)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """A job is over: count it, and let those go on that wait for the queue to become empty."""
        with self._changed:
            if self._jobs.pop(job.id, None) is None:
                return
            self._changed.notify_all()
        assert job.ended_at is not None
        if job.error is not None:
            self.metrics.errors.labels(job.error.code).inc()
            return
        seconds = job.ended_at - job.accepted_at
        self.metrics.job_seconds.observe(seconds)
        service = (job.ended_at - (job.started_at or job.accepted_at)) / len(job.done)
        self._seconds_per_image += 0.1 * (service - self._seconds_per_image)
