"""Health, readiness, metrics and capabilities."""

from typing import Annotated, Any

import psutil
from fastapi import Depends, Response

import latentdiff
from latentdiff.hires import LATENT, PIXEL
from latentdiff.sampling.samplers import SAMPLERS
from latentdiff.serving.api.route import Router
from latentdiff.serving.errors import UnavailableError
from latentdiff.serving.server_state import Server, server_of

router = Router(tags=["operations"])
Here = Annotated[Server, Depends(server_of)]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process responds."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Loading, or stopping"}})
async def readyz(server: Here) -> dict[str, str]:
    """Whether a model is loaded and jobs are accepted."""
    if not server.engine.ready:
        raise UnavailableError("no model is loaded yet, or the server is stopping; try again in a few seconds",
                               headers={"Retry-After": "2"})  # fmt: skip
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(server: Here) -> Response:
    """Prometheus' text format."""
    numbers = server.engine.metrics
    numbers.waiting.set(server.engine.queue.waiting)
    numbers.running.set(len(server.engine.queue.jobs))
    numbers.model_bytes.set(server.engine.models.size)
    numbers.resident_bytes.set(resident_bytes())
    return Response(numbers.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/capabilities")
async def capabilities(server: Here) -> dict[str, Any]:
    """Models, LoRAs, samplers and limits of this server."""
    models = server.engine.models
    defaults = {name: _default_settings(server, name) for name in models.specs}
    return {
        "version": latentdiff.__version__,
        "default_model": models.default,
        "models": [{"id": name, "loaded": name in models.loaded, **defaults[name]} for name in models.specs],
        "loras": list(models.loras),
        "upscalers": [PIXEL, LATENT, *server.engine.upscalers.paths],
        "samplers": list(SAMPLERS),
        "limits": server.limits.as_dict(),
        "exact_batch": server.engine.exact_batch,
        "safety": server.engine.checker.action if server.engine.checker else None,
        "finetuning": server.finetunes is not None,
    }


def _default_settings(server: Server, name: str) -> dict[str, Any]:
    """A model's default settings; empty until it has been loaded once."""
    facts = server.engine.models.facts.get(name)
    if facts is None:
        return {}
    limits = facts.limits
    return {"size": limits.default_size, "size_multiple": limits.downscale, **limits.generation.model_dump()}


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)
