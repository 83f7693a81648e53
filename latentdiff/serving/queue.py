"""The bounded queue: accepted jobs that have not ended, and their images in groups that can share batches."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from latentdiff.serving.errors import LimitError, QueueFullError, UnavailableError
from latentdiff.serving.group import MAX_ROWS, EngineImage, Group, GroupKey
from latentdiff.serving.job import Job
from latentdiff.serving.metrics import Metrics

log = logging.getLogger("latentdiff.serving")


class JobQueue:
    """The jobs that a server has accepted and not finished; thread-safe.

    limit: the number of images that may wait, in addition to one full batch. changed: notified after every change.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.metrics = limit, metrics
        self.accepting = True
        self.changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._groups: dict[GroupKey, Group] = {}
        self._reserved = 0
        self._seconds_per_image, self._last_end = 1.0, 0.0

    @property
    def jobs(self) -> list[Job]:
        """Unfinished jobs, in order of arrival."""
        with self.changed:
            return list(self._jobs.values())

    @property
    def groups(self) -> list[Group]:
        """Groups that contain images."""
        with self.changed:
            self._groups = {key: group for key, group in self._groups.items() if group.waiting or group.active}
            return list(self._groups.values())

    @property
    def waiting(self) -> int:
        """The number of accepted images that have not started."""
        with self.changed:
            return sum(len(group.waiting) for group in self._groups.values())

    @property
    def active_models(self) -> set[str]:
        """Names of the models whose images are being sampled."""
        with self.changed:
            return {key.model for key, group in self._groups.items() if group.active}

    def position(self, job: Job) -> int:
        """The position among the jobs that have not started, from 1; 0 once the job has started."""
        if job.started_at is not None or job.over:
            return 0
        earlier = [other for other in self.jobs if other.started_at is None]
        return earlier.index(job) + 1 if job in earlier else 0

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Count the images of a request that waits for its model. Raises QueueFullError and UnavailableError."""
        with self.changed:
            self.check_room(images)
            self._reserved += images
        try:
            yield
        finally:
            with self.changed:
                self._reserved -= images

    def add(self, job: Job, key: GroupKey) -> None:
        """Accept a job. Raises QueueFullError and UnavailableError."""
        with self.changed:
            self.check_room(job.request.images)
            self._jobs[job.id] = job
            self._group(key).waiting.extend(EngineImage(job, k) for k in range(job.request.images))
            self.changed.notify_all()

    def add_first(self, item: EngineImage, key: GroupKey) -> None:
        """Move an image that was started to the front of another group."""
        with self.changed:
            self._group(key).waiting.appendleft(item)
            self.changed.notify_all()

    def next_waiting(self, group: Group) -> EngineImage | None:
        """Take the image of a group that has waited the longest."""
        with self.changed:
            return group.waiting.popleft() if group.waiting else None

    def take_out(self, job: Job) -> list[EngineImage]:
        """Remove all images of a job from their groups, and return them."""
        with self.changed:
            return [item for group in self._groups.values() for item in group.remove(job)]

    def forget(self, job: Job) -> None:
        """Remove a job that has ended, and count it in the metrics."""
        with self.changed:
            if self._jobs.pop(job.id, None) is None:
                return
            self.changed.notify_all()
        assert job.ended_at is not None
        if job.error is not None:
            self.metrics.errors.labels(job.error.code).inc()
            return
        began, seconds = job.started_at or job.accepted_at, job.ended_at - job.accepted_at
        self.metrics.job_seconds.observe(seconds)
        fields = {"job": job.id, "images": len(job.images), "steps": job.total}
        times = {"queue_seconds": round(began - job.accepted_at, 4), "seconds": round(seconds, 4)}
        log.info("job_finished", extra={"fields": fields | times})
        since = max(self._last_end, began)  # images share batches, so that jobs overlap
        self._last_end = job.ended_at
        self._seconds_per_image += 0.1 * (max(0.0, job.ended_at - since) / len(job.done) - self._seconds_per_image)

    def wake(self) -> None:
        """Wake the engine's thread."""
        with self.changed:
            self.changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more jobs and wait for the accepted ones; returns whether all of them ended."""
        with self.changed:
            self.accepting = False
            return self.changed.wait_for(lambda: not self._jobs, timeout)

    def check_room(self, images: int) -> None:
        """Raise what `add` would raise for so many images."""
        if not self.accepting:
            raise UnavailableError("the server is stopping; send the request to another one")
        if images > self.limit + MAX_ROWS:
            raise LimitError(
                f"images={images} is above {self.limit + MAX_ROWS}, this server's limit for one request; lower it",
                "images",
            )
        unfinished = sum(len(job.done) - len(job.images) for job in self.jobs) + self._reserved
        if unfinished + images <= self.limit + MAX_ROWS:
            return
        seconds = max(1, round(self._seconds_per_image * unfinished / 2))
        self.metrics.errors.labels("queue_full").inc()
        raise QueueFullError(
            f"the queue is full: {unfinished} images are ahead, at most {self.limit} may wait; "
            f"try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )

    def _group(self, key: GroupKey) -> Group:
        return self._groups.setdefault(key, Group(key, last_turn=time.monotonic()))
