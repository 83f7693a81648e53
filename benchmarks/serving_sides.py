"""Servers for `benchmarks.serving`: ours, and pipelines behind FastAPI with a lock, as examples show them."""

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import ENVIRONMENT
from benchmarks.turns import ROOT
from latentdiff.checkpoints.locate_model import locate

OURS, LOCKED, DIFFUSERS = "latentdiff serve", "latentdiff, FastAPI and a lock", "diffusers, FastAPI and a lock"
START_SECONDS = 120.0
Make = Callable[[dict[str, Any]], Any]


class Side:
    """A server in a separate process, which is ended by SIGTERM at the end of `with`."""

    def __init__(self, arguments: Sequence[str], port: int, ready: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *arguments],
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                stderr=log,
            )
        self._ready = ready

    def __enter__(self) -> "Side":
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url + self._ready, timeout=5).close()
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        self.__exit__()
        raise RuntimeError(f"{self.process.args!r} did not start within {START_SECONDS:g} s")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def service_seconds(self) -> list[float]:
        """Seconds from the first step to the end of every finished job, in order; of our server only."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        jobs = [json.loads(line) for line in lines if '"job_finished"' in line]
        return [job["seconds"] - job["queue_seconds"] for job in jobs]


def ours(dtype: str, *options: str, model: Path | None = None) -> Side:
    """`latentdiff serve`."""
    port, named = free_port(), [] if model is None else ["--model", str(model)]
    arguments = ["latentdiff", "serve", "--port", str(port), "--dtype", dtype, *named, *options]
    return Side(arguments, port, "/readyz")


def locked(name: str, dtype: str) -> Side:
    """One of the two pipelines behind FastAPI and a lock."""
    port = free_port()
    return Side(["benchmarks.serving_sides", name, str(port), dtype], port, "/docs")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def our_pipeline(dtype: str) -> Make:
    """Our pipeline, called for one image."""
    from latentdiff import LatentDiffusionPipeline

    pipe = LatentDiffusionPipeline.from_pretrained(dtype=dtype)

    def make(body: dict[str, Any]) -> Any:
        return pipe(
            body["prompt"],
            num_inference_steps=body["num_inference_steps"],
            guidance_scale=body["guidance_scale"],
            seed=body["seed"],
            sampler="ddim",
        ).images[0]

    return make


def _diffusers_pipeline(dtype: str) -> Make:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(locate(None), torch_dtype=getattr(torch, dtype))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def make(body: dict[str, Any]) -> Any:
        return pipe(
            body["prompt"],
            num_inference_steps=body["num_inference_steps"],
            guidance_scale=body["guidance_scale"],
            generator=torch.Generator().manual_seed(body["seed"]),
        ).images[0]

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[LOCKED, DIFFUSERS])
    parser.add_argument("port", type=int)
    parser.add_argument("dtype")
    options = parser.parse_args()
    import uvicorn
    from fastapi import FastAPI

    app, lock = FastAPI(), threading.Lock()
    make = (our_pipeline if options.name == LOCKED else _diffusers_pipeline)(options.dtype)

    @app.post("/v1/images/generations")
    def generate(body: dict[str, Any]) -> dict[str, Any]:
        buffer = io.BytesIO()
        with lock:
            make(body).save(buffer, "PNG")
        return {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}

    uvicorn.run(app, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
