"""Continuous batching of diffusion steps: images join and leave a batch at any step, each at its own position.

One thread owns the networks. Groups of images that cannot share a batch take turns.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from latentdiff.errors import InputError, LatentDiffError
from latentdiff.hires import check_hires
from latentdiff.inputs import read_inputs
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.safety import ContentChecker
from latentdiff.serving.errors import (
    CancelledError,
    DeadlineError,
    InternalError,
    ServingError,
    UnavailableError,
    as_serving_error,
)
from latentdiff.serving.finishing import Finisher
from latentdiff.serving.group import MAX_ROWS, Group, GroupKey
from latentdiff.serving.job import ImageRequest, Job
from latentdiff.serving.limits import Limits
from latentdiff.serving.metrics import Metrics
from latentdiff.serving.models import ModelStore
from latentdiff.serving.queue import JobQueue
from latentdiff.serving.turns import Turns
from latentdiff.serving.upscalers import UpscalerStore

log = logging.getLogger("latentdiff.serving")


class Engine:
    """Accepts jobs from any thread and samples them on its own thread.

    exact_batch: pad every batch to this many network evaluations, so that an image is bit-identical under any load.
    checker: the content checker of finished images.
    """

    def __init__(
        self,
        models: ModelStore,
        limits: Limits | None = None,
        exact_batch: int | None = None,
        metrics: Metrics | None = None,
        upscalers: UpscalerStore | None = None,
        checker: ContentChecker | None = None,
    ) -> None:
        if exact_batch is not None and exact_batch < 2:
            raise InputError(
                f"exact_batch={exact_batch} must be at least 2, since guidance needs two evaluations; try 8"
            )
        self.models, self.limits, self.exact_batch = models, limits or Limits(), exact_batch
        self.metrics = metrics or Metrics()
        self.upscalers = upscalers or UpscalerStore()
        self.queue = JobQueue(self.limits.queue, self.metrics)
        self.checker = checker
        self.finisher = Finisher(self.queue, self.upscalers, self.metrics, checker)
        self._turns = Turns()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="latentdiff-engine", daemon=True)
        models.on_change, models.in_use = self.queue.wake, lambda: self.queue.active_models

    def start(self) -> None:
        """Start the thread, and load the default model."""
        self.models.get(self.models.default)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are accepted and a model has been loaded; it may have been unloaded since."""
        return self.queue.accepting and bool(self.models.facts)

    def submit(self, request: ImageRequest, deadline: float | None = None, keep_at: tuple[int, ...] = ()) -> Job:
        """Accept a job. Raises InputError, QueueFullError, and UnavailableError if the server is stopping."""
        if request.hires is not None:
            check_hires(request.settings)
        if (facts := self.models.facts.get(request.model)) is not None and "image" not in request.settings:
            read_inputs(facts.limits, **request.arguments(request.images - 1))
        job = Job(request, min(deadline or self.limits.deadline, self.limits.deadline), keep_at)
        job.blurs_previews = self.checker is not None and self.checker.action != "flag"
        self.queue.add(job, GroupKey.of(request, request.size))
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job before the next step."""
        job.cancel()
        self.queue.wake()

    def stop_jobs(self, jobs: list[Job]) -> None:
        """Finish jobs early, with the images as predicted so far, before the next step."""
        for job in jobs:
            job.stop()
        self.queue.wake()

    def close(self) -> None:
        """Stop the threads; unfinished jobs fail."""
        with self.queue.changed:
            self.queue.accepting, self._closed = False, True
            self.queue.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self.finisher.close()
        self.models.close()
        for job in self.queue.jobs:
            self._end(job, UnavailableError("the server stopped"))

    def _run(self) -> None:
        while True:
            self._end_jobs()
            with self.queue.changed:
                if self._closed:
                    return
            if (chosen := self._next_group()) is None:
                with self.queue.changed:
                    if not self._closed:
                        self.queue.changed.wait(0.05 if self.queue.jobs else 1.0)
                continue
            group, pipe = chosen
            with self._ending_jobs_on_error(group):
                self._use_loras(pipe, group)
                self._start_images(group, pipe)
                if group.active:
                    self._step(group, pipe)

    @contextmanager
    def _ending_jobs_on_error(self, group: Group) -> Iterator[None]:
        """Context manager in which an exception ends the jobs of this group, and no others."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, LatentDiffError):
                log.exception("step_failed")
            for job in group.jobs:
                self._end(job, as_serving_error(error))

    def _next_group(self) -> tuple[Group, LatentDiffusionPipeline] | None:
        """The group whose turn it is, of those whose model is loaded."""
        ready: dict[Group, LatentDiffusionPipeline] = {}
        groups, busy = self.queue.groups, self.queue.active_models
        self.models.drop_idle(busy | (self.models.unused & {group.key.model for group in groups}))
        for group in groups:
            if group.active or self.models.may_start(group.key.model):
                with self._ending_jobs_on_error(group):
                    if (pipe := self.models.get(group.key.model)) is not None:
                        ready[group] = pipe
        chosen = self._turns.choose(list(ready))
        return None if chosen is None else (chosen, ready[chosen])

    def _use_loras(self, pipe: LatentDiffusionPipeline, group: Group) -> None:
        wanted = dict(group.key.loras)
        self.models.load_new_loras(pipe, wanted)
        if {name: pair for name, pair in pipe.adapters.items() if pair != (0.0, 0.0)} != wanted:
            pipe.set_adapters(wanted)

    def _start_images(self, group: Group, pipe: LatentDiffusionPipeline) -> None:
        while len(group.active) < MAX_ROWS and self.models.may_start(group.key.model):
            if (item := self.queue.next_waiting(group)) is None:
                break
            job = item.job
            try:
                inputs = read_inputs(pipe.limits, **item.arguments)
                (row,) = pipe.start(inputs)
            except Exception as error:
                if not isinstance(error, InputError):
                    log.exception("start_failed")
                self._end(job, as_serving_error(error))
                continue
            item.begin_pass(pipe, inputs, row)
            if job.started_at is None:
                job.begin()
                self.metrics.queue_seconds.observe(time.monotonic() - job.accepted_at)
            if row.state.finished:
                self.finisher.finish(pipe, item, row.result)
                continue
            with self.queue.changed:
                group.active.append(item)
        self.models.unused.discard(group.key.model)

    def _step(self, group: Group, pipe: LatentDiffusionPipeline) -> None:
        batch = group.next_batch(self.exact_batch)
        began = time.monotonic()
        inputs = batch[0].inputs
        assert inputs is not None
        old = [item.row for item in batch if item.row]
        rows, x0 = pipe.step(old, self.exact_batch, inputs.tile, inputs.seamless)
        self.metrics.observe_step(len(batch), time.monotonic() - began)
        for item, row, predicted in zip(batch, rows, x0, strict=True):
            item.row, item.x0 = row, predicted
            item.job.advance(item.index, item.steps, item.total_steps, predicted)
            if row.state.finished:
                with self.queue.changed:
                    group.active.remove(item)
                self.finisher.finish(pipe, item, row.result)

    def _end_jobs(self) -> None:
        """Remove jobs that were cancelled or stopped, that failed, or whose deadline has passed."""
        now = time.monotonic()
        for job in self.queue.jobs:
            if job.failure is not None:
                self._end(job, job.failure)
            elif job.cancelling:
                self._end(job, CancelledError("the job was cancelled"))
            elif now > job.deadline:
                seconds = job.deadline - job.accepted_at
                self._end(job, DeadlineError(f"the job was not finished within its deadline of {seconds:g} s"))
            elif job.stopping and not job.interrupted:
                self._interrupt(job)

    def _interrupt(self, job: Job) -> None:
        """Decode the current predictions of images that were started, and do not start the others."""
        with self.queue.changed:
            job.interrupted = True
            for item in self.queue.take_out(job):
                if item.pipe is not None and item.x0 is not None:
                    self.finisher.decode(item.pipe, item, item.x0, stopped=True)
            job.expect(job.finishing)
        if job.over:
            self.queue.forget(job)

    def _end(self, job: Job, error: ServingError) -> None:
        if isinstance(error, InternalError):
            log.error("job_failed", extra={"fields": {"job": job.id, "error": str(error)}})
        self.queue.take_out(job)
        job.fail(error)
        self.queue.forget(job)
