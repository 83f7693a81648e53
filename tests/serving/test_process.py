"""The server as a separate process: SIGTERM under load, and a soak of valid and invalid requests."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from benchmarks.serving_sides import ours
from benchmarks.serving_soak import EXPECTED, OPTIONS, soak

BODY = {"prompt": "a red apple", "steps": 30, "width": 16, "height": 16}


@pytest.mark.slow
def test_no_accepted_job_is_lost_at_sigterm(model_folder: Path) -> None:
    with ours("float32", "--device", "cpu", model=model_folder) as side, ThreadPoolExecutor(8) as pool:
        own = [httpx.post(f"{side.url}/jobs", json=BODY | {"seed": k}).json()["id"] for k in range(12)]
        waiting = [pool.submit(httpx.post, f"{side.url}/sdapi/v1/txt2img", json=BODY, timeout=120) for _ in range(8)]
        while len(httpx.get(f"{side.url}/internal/pending-tasks").json()["tasks"]) < 8:
            time.sleep(0.01)
        side.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        refused = httpx.post(f"{side.url}/jobs", json=BODY)
        assert refused.status_code == 503 and httpx.get(f"{side.url}/readyz").status_code == 503
        assert all(len(each.result().json()["images"]) == 1 for each in waiting)
        for job in own:
            while httpx.get(f"{side.url}/jobs/{job}").json()["status"] != "finished":
                time.sleep(0.01)
            assert httpx.get(f"{side.url}/jobs/{job}/images/0").content.startswith(b"\x89PNG")
        assert side.process.wait(30) == 0


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(model_folder: Path) -> None:
    with ours("float32", "--device", "cpu", model=model_folder) as side:
        for k in range(16):
            httpx.post(f"{side.url}/jobs", json=BODY | {"seed": k, "steps": 150, "images": 8})
        side.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{side.url}/readyz").status_code != 503:
            time.sleep(0.01)
        side.process.send_signal(signal.SIGTERM)
        assert side.process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_sigterm_waits_for_url_answers_but_not_for_a_client_that_never_sends_its_body(model_folder: Path) -> None:
    with ours("float32", "--device", "cpu", model=model_folder) as side, ThreadPoolExecutor(1) as pool:
        body = {"prompt": "a red apple", "num_inference_steps": 30, "size": "16x16", "n": 8, "response_format": "url"}
        stalled = socket.create_connection(("127.0.0.1", httpx.URL(side.url).port))
        stalled.sendall(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = pool.submit(httpx.post, f"{side.url}/v1/images/generations", json=body, timeout=120)
        while "latentdiff_jobs 1.0" not in httpx.get(f"{side.url}/metrics").text:
            time.sleep(0.01)
        side.process.send_signal(signal.SIGTERM)
        files = [httpx.get(image["url"]).content for image in answer.result().json()["data"]]
        assert len(files) == 8 and all(file.startswith(b"\x89PNG") for file in files)
        assert side.process.wait(30) == 0
        stalled.close()


@pytest.mark.slow
def test_a_soak_leaves_no_request_unanswered(model_folder: Path) -> None:
    with ours("float32", *OPTIONS, model=model_folder) as side:
        found = soak(side, 400)
        assert set(found.outcomes) <= EXPECTED and side.process.poll() is None
        assert found.samples[-1][2] <= found.samples[4][2] + 5
