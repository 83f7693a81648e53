"""The Ray Serve example: seeds are fixed at acceptance, and no accepted job is lost with a replica."""

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from latentdiff import LatentDiffusionPipeline

ray = pytest.importorskip("ray", reason="the example needs ray[serve]")
pytestmark = pytest.mark.slow
JOB = {"prompt": "a red apple", "steps": 100, "width": 16, "height": 16}


def test_a_seed_is_fixed_once() -> None:
    from examples.ray.ingress import with_seed

    given = with_seed("/jobs", b'{"prompt": "x", "seed": 3}')
    assert json.loads(given)["seed"] == 3
    drawn = json.loads(with_seed("/sdapi/v1/txt2img", b'{"prompt": "x", "seed": -1}'))["seed"]
    assert 0 <= drawn < 2**32
    assert with_seed("/v1/models", b"{}") == b"{}" and with_seed("/jobs", b"{") == b"{"


def test_a_call_is_repeated_when_a_replica_dies() -> None:
    from ray.exceptions import RayActorError

    from examples.ray.ingress import TRIES, repeated

    tries: list[int] = []

    async def fails(times: int) -> str:
        tries.append(1)
        if len(tries) <= times:
            raise RayActorError
        return "made"

    assert asyncio.run(repeated(lambda: fails(2))) == "made" and len(tries) == 3
    tries.clear()
    with pytest.raises(RayActorError):
        asyncio.run(repeated(lambda: fails(100)))
    assert len(tries) == TRIES


@pytest.fixture(scope="module")
def cluster(model_folder: Path) -> Iterator[str]:
    """Two replicas of the small model on this machine."""
    from ray import serve

    from examples.ray.deployment import application

    ray.init(num_cpus=4, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 18761})
    serve.run(application(str(model_folder), (2, 2), cpus=1, device="cpu"))
    yield "http://127.0.0.1:18761"
    serve.shutdown()
    ray.shutdown()


def replicas() -> list[psutil.Process]:
    """The processes of the workers: Ray names them by their titles."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "ServeReplica:default:Worker" in " ".join(process.cmdline())]


def test_a_killed_replica_loses_no_accepted_job(cluster: str, model_folder: Path) -> None:

    accepted = [httpx.post(f"{cluster}/jobs", json=JOB | {"steps": 150}, timeout=60).json() for _ in range(24)]
    assert len({job["seed"] for job in accepted}) == 24
    running = replicas()
    assert len(running) == 2
    running[0].kill()
    deadline = time.monotonic() + 120
    for job in accepted:
        while (state := httpx.get(f"{cluster}/jobs/{job['id']}").json())["status"] == "running":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert state["status"] == "finished", state
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu")
    for job in accepted[:3]:
        made = Image.open(io.BytesIO(httpx.get(f"{cluster}/jobs/{job['id']}/images/0").content))
        (alone,) = pipe(JOB["prompt"], num_inference_steps=150, height=16, width=16, seed=job["seed"]).images
        assert np.abs(np.asarray(made).astype(int) - np.asarray(alone)).max() <= 1


def test_other_routes_are_forwarded(cluster: str) -> None:
    made = httpx.post(f"{cluster}/sdapi/v1/txt2img", json=JOB | {"steps": 2}, timeout=60)
    assert made.status_code == 200 and len(made.json()["images"]) == 1
    assert httpx.get(f"{cluster}/v1/models").json()["data"][0]["id"] == "model"
    assert httpx.post(f"{cluster}/v1/images/generations", json={"prompt": "x", "stream": True}).status_code == 400
    bad = httpx.post(f"{cluster}/jobs", json={"prompt": "x", "width": 17, "height": 16}).json()
    while (state := httpx.get(f"{cluster}/jobs/{bad['id']}").json())["status"] == "running":
        time.sleep(0.05)
    assert "width=17 must be a multiple" in state["error"]["message"]
