"""Work after an image's last step: decoding, or enlarging for the second pass.

Both have separate threads, so that they do not delay the steps of other images.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from latentdiff.errors import LatentDiffError, NonFiniteError
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.safety import ContentChecker
from latentdiff.serving.errors import ContentRefusedError, as_serving_error
from latentdiff.serving.group import EngineImage, GroupKey
from latentdiff.serving.job import JobImage
from latentdiff.serving.metrics import Metrics
from latentdiff.serving.queue import JobQueue
from latentdiff.serving.upscalers import UpscalerStore
from latentdiff.serving.worker import Worker

log = logging.getLogger("latentdiff.serving")
T = TypeVar("T")


class Finisher:
    """Delivers the images of jobs, and puts those with a second pass back into the queue."""

    def __init__(
        self, queue: JobQueue, upscalers: UpscalerStore, metrics: Metrics, checker: ContentChecker | None = None
    ) -> None:
        self.queue, self.upscalers, self.metrics, self.checker = queue, upscalers, metrics, checker
        self._decoder, self._enlarger = Worker("latentdiff-decoder"), Worker("latentdiff-upscaler")

    def finish(self, pipe: LatentDiffusionPipeline, item: EngineImage, latents: Tensor) -> None:
        """Latents [C, h, w] after the last step of a pass."""
        if item.hires is None:
            self.decode(pipe, item, latents)
        else:
            self._hand_over(self._enlarger, self._enlarge, pipe, item, latents)

    def decode(self, pipe: LatentDiffusionPipeline, item: EngineImage, latents: Tensor, stopped: bool = False) -> None:
        """Deliver the image of latents [C, h, w]. stopped: the job was interrupted, and they are a prediction."""

        def deliver(pipe: LatentDiffusionPipeline, item: EngineImage, latents: Tensor) -> None:
            began = time.monotonic()
            image = _decoded(pipe, item, latents)
            self.metrics.decode_seconds.observe(time.monotonic() - began)
            self.metrics.images.inc()
            image, checked = self._check(image)
            seeds = item.job.request.seeds(item.index)
            item.job.deliver(item.index, JobImage(image, *seeds, stopped, checked))
            if item.job.over:
                self.queue.forget(item.job)

        self._hand_over(self._decoder, deliver, pipe, item, latents)

    def upscale(self, work: Callable[[], T]) -> Future[T]:
        """Run work on the upscaler's thread, one item at a time."""
        return self._enlarger.submit(work)

    def close(self) -> None:
        """Finish the remaining work, and stop the threads."""
        self._enlarger.close()
        self._decoder.close()

    def _enlarge(self, pipe: LatentDiffusionPipeline, item: EngineImage, latents: Tensor) -> None:
        hires, job = item.hires, item.job
        assert hires is not None
        network = self.upscalers.get(hires.upscaler, pipe.device)
        first = latents[None] if hires.latent else [_decoded(pipe, item, latents)]
        enlarged = hires.enlarge(first, pipe.vae.config.downscale, network)
        with self.queue.changed:
            if job.interrupted:
                return self.decode(pipe, item, latents, stopped=True)
            job.finishing -= 1
            item.begin_second_pass(enlarged)
            return self.queue.add_first(item, GroupKey.of(job.request, job.request.output_size))

    def _check(self, image: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
        """The image after the content check, and the result of the check. Raises ContentRefusedError."""
        if self.checker is None:
            return image, {}
        (checked,) = self.checker([image])
        if checked.image is None:
            raise ContentRefusedError(
                f"the content checker refused an image (score {checked.score:.2f}); change the prompt or the seed"
            )
        found = {"safety": self.checker.action, "safety_score": checked.score, "flagged": checked.flagged}
        return checked.image, found

    def _hand_over(
        self,
        worker: Worker,
        work: Callable[[LatentDiffusionPipeline, EngineImage, Tensor], None],
        pipe: LatentDiffusionPipeline,
        item: EngineImage,
        latents: Tensor,
    ) -> None:
        """Run `work` on a worker, unless the job has ended by then; an exception ends the job."""
        job = item.job

        def guarded() -> None:
            if job.over or job.cancelling:
                return
            try:
                if not torch.isfinite(latents).all():
                    raise NonFiniteError("the latents are not finite; serve the model with --dtype float32")
                work(pipe, item, latents)
            except Exception as error:
                if not isinstance(error, LatentDiffError):
                    log.exception("finishing_failed")
                job.failure = as_serving_error(error)
                self.queue.wake()

        job.finishing += 1
        worker.submit(guarded)


def _decoded(pipe: LatentDiffusionPipeline, item: EngineImage, latents: Tensor) -> Image.Image:
    assert item.inputs is not None
    inputs = item.inputs
    (image,) = pipe.finish(latents[None], canvases=inputs.canvases, axes=inputs.seamless, tile=inputs.tile)
    assert isinstance(image, Image.Image)
    return image
