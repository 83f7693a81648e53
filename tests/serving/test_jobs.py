"""Our own API, operations, limits and the guard, over HTTP."""

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from latentdiff.errors import CheckpointError
from latentdiff.recipe import write_image
from latentdiff.recipe.files import CHUNK
from latentdiff.recipe.schema import Recipe
from latentdiff.serving.errors import as_serving_error
from latentdiff.serving.limits import Limits
from latentdiff.serving.server_state import Server, Settings
from tests.serving.conftest import MakeEngine, MakeLive, request
from tests.serving.live import Live
from tests.serving.test_engine import slow

JOB = {"prompt": "a red apple", "steps": 4, "seed": 5, "images": 2}


def events(live: Live, job_id: str, **query: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    with httpx.stream("GET", f"{live.url}/jobs/{job_id}/events", params=query, timeout=60) as answer:
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            if line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


def test_a_job_is_accepted_and_watched_and_its_images_contain_their_recipes(
    make_live: MakeLive, monkeypatch: Any
) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch, 0.1)
    accepted = httpx.post(f"{live.url}/jobs", json=JOB | {"steps": 10})
    assert accepted.status_code == 202
    seen = list(events(live, accepted.json()["id"]))
    kinds = [kind for kind, _ in seen]
    assert kinds[-1] == "result" and {"progress", "preview"} <= set(kinds)
    first_preview = next(data for kind, data in seen if kind == "preview")
    joined = next(max(data["done"]) for kind, data in seen if kind == "progress")
    assert first_preview["step"] <= joined + 3
    steps = [max(data["done"]) for kind, data in seen if kind == "progress"]
    assert steps == sorted(steps)
    images = seen[-1][1]["images"]
    assert [image["seed"] for image in images] == [5, 6]
    for image in images:
        file = Image.open(io.BytesIO(httpx.get(live.url + image["url"]).content))
        recipe = Recipe.model_validate_json(file.text[CHUNK])  # type: ignore[attr-defined]
        assert (recipe.prompt, recipe.seed, recipe.steps, file.size) == ("a red apple", image["seed"], 10, (16, 16))
        assert recipe.model == Path(live.server.engine.models.specs["small"].path or "").name
        assert f"Seed: {image['seed']}, Size: 16x16" in file.text["parameters"]  # type: ignore[attr-defined]
    assert httpx.get(live.url + images[0]["url"], params={"format": "webp"}).content[8:12] == b"WEBP"


def test_deleting_a_job_cancels_it_and_deleting_it_again_removes_it(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch)
    job = httpx.post(f"{live.url}/jobs", json=JOB | {"steps": 150}).json()
    assert httpx.delete(f"{live.url}/jobs/{job['id']}").status_code == 200
    kind, data = list(events(live, job["id"]))[-1]
    assert kind == "error" and data["status"] == "cancelled" and data["error"]["code"] == "cancelled"
    assert httpx.get(f"{live.url}/jobs/{job['id']}/images/0").status_code == 404
    httpx.delete(f"{live.url}/jobs/{job['id']}")
    assert httpx.get(f"{live.url}/jobs/{job['id']}").status_code == 404


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"steps": 5000}, 400, "steps=5000 is above this server's limit of 150"),
        ({"width": 65536, "height": 65536}, 400, "pixels"),
        ({"images": 99}, 400, "images=99 is above this server's limit of 16"),
        ({"prompt": "x" * 100_000}, 400, "limit of 20000 characters"),
        ({"height": 17}, 400, "height=17 must be a multiple of 2; try 16 or 18"),
        ({"mask_blur": 3.0}, 400, "mask_blur requires an image"),
        ({"guidance_scale": 1.0, "guidance_interval": [0.2, 0.8]}, 400, "guidance_interval=0.2, 0.8 has no effect"),
        ({"sampler": "eule"}, 400, "did you mean 'euler'"),
        ({"model": "smal"}, 404, "did you mean 'small'"),
        ({"loras": {"ink": 1}}, 404, "LoRA 'ink' is unknown"),
        ({"stepps": 3}, 422, "stepps"),
        ({"seed": -1}, 422, "seed"),
        ({"steps": "20"}, 422, "steps: Input should be a valid integer"),
        ({"images": True}, 422, "images: Input should be a valid integer"),
        ({"guidance_scale": "3"}, 422, "guidance_scale: Input should be a valid number"),
        ({"prompt": "\ud800"}, 422, ""),
    ],
)
def test_unusable_fields_are_named_in_the_error(live: Live, change: dict[str, Any], status: int, words: str) -> None:
    content = json.dumps(JOB | change)
    answer = httpx.post(f"{live.url}/jobs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (status, 400) and words in answer.json()["error"]["message"], answer.text


def test_an_upload_of_60_mb_is_answered_with_the_limit(live: Live) -> None:
    answer = httpx.post(f"{live.url}/jobs", content=bytes(60_000_000), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and "limit of 33554432 bytes" in answer.json()["error"]["message"]


def test_a_body_that_is_not_json_is_an_error_about_the_body(live: Live) -> None:
    answer = httpx.post(f"{live.url}/jobs", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["error"]["message"].startswith("body: ")


def test_more_images_than_the_queue_can_hold_exceed_a_limit_instead_of_filling_the_queue(make_live: MakeLive) -> None:
    live = make_live(limits=Limits(queue=1))
    answer = httpx.post(f"{live.url}/jobs", json=JOB | {"images": 10})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "images=10 is above 9, this server's limit for one request; lower it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/photo.safetensors is damaged; download it", "photo.safetensors is damaged; download it"),
        ("cannot read '/my models/a b.safetensors'", "cannot read 'a b.safetensors'"),
        ("No such file: '/srv/m/unet/config.json'", "No such file: 'config.json'"),
        ("C:\\models\\x.bin or ~/models/y (see /tmp/z.log).", "x.bin or y (see z.log)."),
        ("org/model at 1/255, http://host/a", "org/model at 1/255, http://host/a"),
    ],
)
def test_messages_name_files_without_their_folders(text: str, expected: str) -> None:
    error = as_serving_error(CheckpointError(text))
    assert str(error) == expected and error.status == 500


def test_a_model_that_cannot_be_loaded_is_reported_without_its_folder(
    make_live: MakeLive, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    live = make_live(models={"small": model_folder, "broken": tmp_path / "secret"})
    answer = httpx.post(f"{live.url}/jobs", json=JOB | {"model": "broken"}, timeout=30)
    assert answer.status_code == 500 and str(tmp_path) not in answer.text
    assert "broken cannot be loaded: model_index.json cannot be read" in answer.json()["error"]["message"]


def test_the_recipe_route_carries_over_or_names_every_setting(live: Live, tmp_path: Path) -> None:
    job = httpx.post(f"{live.url}/jobs", json=JOB | {"images": 1}).json()
    assert list(events(live, job["id"]))[-1][0] == "result"
    file = Image.open(io.BytesIO(httpx.get(f"{live.url}/jobs/{job['id']}/images/0").content))
    made = Recipe.model_validate_json(file.text[CHUNK])  # type: ignore[attr-defined]
    assert _recipe(live, made, tmp_path)["dropped"] == []
    edited = {
        "image_hash": "0123", "strength": 0.6, "fit": "contain", "mask_blur": 4.0, "mask_grow": 3, "paste_back": False,
        "aesthetic_score": 6.0, "original_size": (64, 64), "refiner": "/srv/refiner", "embeddings": ("/srv/cat.pt",),
        "approximate": ("deepcache",), "seamless": "x",
    }  # fmt: skip
    found = _recipe(live, made.model_copy(update=edited), tmp_path)
    assert found["settings"]["seamless"] == "x" and found["settings"]["model"] == "small"
    assert sorted(found["dropped"]) == [
        "aesthetic_score: 6.0", "approximate: deepcache", "embeddings: cat.pt", "fit: contain", "image", "mask_grow: 3",
        "original_size: 64, 64", "paste_back: False", "refiner: refiner", "strength: 0.6",
    ]  # fmt: skip


def _recipe(live: Live, recipe: Recipe, folder: Path) -> dict[str, Any]:
    write_image(Image.new("RGB", (16, 16)), recipe, folder / "x.png")
    data = base64.b64encode((folder / "x.png").read_bytes()).decode()
    answer: dict[str, Any] = httpx.post(f"{live.url}/recipe", json={"image": data}).json()
    return answer


def test_a_full_queue_answers_429_with_retry_after(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live(limits=Limits(queue=1))
    slow(live.server.engine, monkeypatch)
    accepted = [httpx.post(f"{live.url}/jobs", json=JOB | {"images": 4, "steps": 150}) for _ in range(2)]
    refused = httpx.post(f"{live.url}/jobs", json=JOB)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "8 images are ahead" in refused.json()["error"]["message"]
    for answer in accepted:
        httpx.delete(f"{live.url}/jobs/{answer.json()['id']}")


def test_a_full_queue_refuses_before_prompts_and_images_are_read(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live(limits=Limits(queue=1))
    slow(live.server.engine, monkeypatch)
    job = httpx.post(f"{live.url}/jobs", json=JOB | {"images": 9, "steps": 150}).json()
    text, image = {"prompt": "x"}, base64.b64encode(b"this is no image").decode()
    form = {"data": text, "files": {"image": b"this is no image"}}
    refused = [
        httpx.post(f"{live.url}/jobs", json=JOB | {"seamless": "z"}),
        httpx.post(f"{live.url}/jobs", json=JOB | {"image": image}),
        httpx.post(f"{live.url}/v1/images/generations", json=text | {"stream": True, "seamless": "z"}),
        httpx.post(f"{live.url}/v1/images/edits", **form),
        httpx.post(f"{live.url}/sdapi/v1/img2img", json=text | {"init_images": [image]}),
    ]
    assert [answer.status_code for answer in refused] == [429] * 5
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    httpx.delete(f"{live.url}/jobs/{job['id']}")


def test_operations(live: Live) -> None:
    assert httpx.get(f"{live.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{live.url}/readyz").status_code == 200
    job = httpx.post(f"{live.url}/jobs", json=JOB).json()
    assert list(events(live, job["id"]))[-1][0] == "result"
    httpx.post(f"{live.url}/jobs", json=JOB | {"steps": 999})
    text = httpx.get(f"{live.url}/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(numbers["latentdiff_images_total"]) >= 2 and float(numbers["latentdiff_model_bytes"]) > 0
    assert float(numbers["latentdiff_resident_bytes"]) > 2**20 and float(numbers["latentdiff_row_steps_total"]) >= 8
    assert float(numbers['latentdiff_requests_total{route="/jobs",status="202"}']) >= 1
    facts = httpx.get(f"{live.url}/v1/capabilities").json()
    assert facts["limits"]["steps"] == 150 and facts["models"][0]["id"] == "small" and "euler" in facts["samplers"]
    assert facts["models"][0]["size"] == 16 and facts["models"][0]["size_multiple"] == 2


def test_request_ids_are_returned(live: Live) -> None:
    assert httpx.get(f"{live.url}/healthz", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    assert httpx.get(f"{live.url}/nowhere").headers["x-request-id"]


def test_a_server_that_is_loading_is_not_ready(make_engine: Any) -> None:
    from starlette.testclient import TestClient

    from latentdiff.serving.app import create_app
    from latentdiff.serving.server_state import Server

    client = TestClient(create_app(Server(make_engine(start=False))), base_url="http://localhost")
    assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200


def test_a_server_whose_model_was_unloaded_remains_ready(make_live: MakeLive) -> None:
    live = make_live()
    assert httpx.post(f"{live.url}/sdapi/v1/unload-checkpoint").status_code == 200
    assert not live.server.engine.models.loaded and httpx.get(f"{live.url}/readyz").status_code == 200


@pytest.mark.parametrize("field", ["model", "sampler", "spacing", "upscaler", "prompt_syntax", "x"])
def test_errors_repeat_only_the_beginning_of_long_values(live: Live, field: str) -> None:
    values = {field: "é" * 500_000, "hires": 2.0} if field != "x" else {"x" * 500_000: 1}
    answer = httpx.post(f"{live.url}/jobs", json=JOB | values, timeout=30)
    assert 400 <= answer.status_code < 500 and len(answer.json()["error"]["message"]) <= 1000


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character(live: Live) -> None:
    for values in ({"\ud800": 1}, {"prompt": "\udc00"}, {"model": "\ud83d"}):
        content = json.dumps(JOB | values)
        refused = httpx.post(f"{live.url}/jobs", content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 400 and "half a surrogate pair" in refused.json()["error"]["message"]
    whole = json.dumps(JOB | {"prompt": "🍎"}).encode()
    assert b"\\ud83c" in whole
    answer = httpx.post(f"{live.url}/jobs", content=whole, headers={"content-type": "application/json"})
    assert answer.json()["request"]["prompt"] == "🍎"


@pytest.mark.parametrize(("path", "field"), [("/jobs", "error"), ("/sdapi/v1/txt2img", "detail")])
def test_a_fault_of_the_server_is_answered_in_the_clients_dialect(
    make_engine: MakeEngine, monkeypatch: Any, path: str, field: str
) -> None:
    from starlette.testclient import TestClient

    from latentdiff.serving.app import create_app

    server = Server(make_engine())
    monkeypatch.setattr(server, "request", lambda **_: (_ for _ in ()).throw(KeyError("oops")))
    client = TestClient(create_app(server), base_url="http://localhost", raise_server_exceptions=False)
    answer = client.post(path, json=JOB)
    assert answer.status_code == 500 and "KeyError" in str(answer.json()[field])


def test_prompts_joined_by_and_are_limited(live: Live) -> None:
    """The network evaluates each of them in every step."""
    limit = httpx.get(f"{live.url}/v1/capabilities").json()["limits"]["joined_prompts"]
    texts = [" AND ".join(["a"] * count) for count in (limit, limit + 1)]
    assert httpx.post(f"{live.url}/jobs", json=JOB | {"prompt": texts[0]}).status_code == 202
    assert httpx.post(f"{live.url}/jobs", json=JOB | {"prompt": texts[1], "prompt_syntax": "plain"}).status_code == 202
    refused = httpx.post(f"{live.url}/jobs", json=JOB | {"prompt": texts[1]})
    assert refused.status_code == 400 and f"limit of {limit}" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "prompt"


def test_keys_may_contain_any_characters(make_live: MakeLive) -> None:
    live = make_live(Settings(key="ключ"))
    encoded = "ключ".encode()
    assert httpx.get(f"{live.url}/v1/models", headers={"authorization": b"Bearer " + encoded}).status_code == 200
    assert httpx.get(f"{live.url}/v1/models", auth=(b"me", encoded)).status_code == 200
    assert httpx.get(f"{live.url}/v1/models", headers={"authorization": b"Bearer " + encoded[1:]}).status_code == 401


def test_a_key_is_required_if_the_server_has_one(make_live: MakeLive) -> None:
    live = make_live(Settings(key="sesame"))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic !!"}, {"authorization": ""}):
        refused = httpx.get(f"{live.url}/v1/models", headers=headers)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{live.url}/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 200
    assert httpx.get(f"{live.url}/v1/models", auth=("anyone", "sesame")).status_code == 200
    assert httpx.get(f"{live.url}/healthz").status_code == 200


def test_pages_of_other_sites_may_not_call(make_live: MakeLive) -> None:
    live = make_live(Settings(origins=("https://friend.example",)))
    evil = httpx.post(f"{live.url}/jobs", json=JOB, headers={"origin": "https://evil.example"})
    assert evil.status_code == 403 and "--cors-origin" in evil.json()["error"]["message"]
    rebound = httpx.get(f"{live.url}/v1/models", headers={"host": "evil.example"})
    assert rebound.status_code == 403 and "not a name of this server" in rebound.json()["error"]["message"]
    friend = httpx.get(f"{live.url}/v1/models", headers={"origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-origin" not in httpx.get(f"{live.url}/v1/models").headers


def test_large_bodies_are_refused_whether_or_not_they_state_their_length(make_live: MakeLive) -> None:
    live = make_live(limits=Limits(body=1000))
    body = json.dumps(JOB | {"negative_prompt": "x" * 2000}).encode()
    for content in (body, iter([body[:900], body[900:]])):
        answer = httpx.post(f"{live.url}/jobs", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and "limit of 1000 bytes" in answer.json()["error"]["message"]
    assert httpx.post(f"{live.url}/jobs", json=JOB).status_code == 202


def test_broken_requests_do_no_harm(live: Live) -> None:
    for data in (b"GARBAGE\r\n\r\n", b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf"):
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            connection.sendall(data)
    broken = httpx.post(f"{live.url}/jobs", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 422 and broken.json()["error"]["message"]
    assert httpx.get(f"{live.url}/jobs/../../etc/passwd").status_code == 404
    assert httpx.get(f"{live.url}/v1/files/..%2F..%2Fetc%2Fpasswd").status_code == 404
    assert httpx.get(f"{live.url}/healthz").status_code == 200


def test_stopping_finishes_accepted_jobs(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch)
    ids = [httpx.post(f"{live.url}/jobs", json=JOB | {"steps": 20, "seed": k}).json()["id"] for k in range(6)]
    streams = [events(live, job_id, previews=False) for job_id in ids]
    for stream in streams:
        next(stream)
    live.uvicorn.should_exit = True
    assert [list(stream)[-1][0] for stream in streams] == ["result"] * 6
    live.thread.join(30)
    deadline = time.monotonic() + 10
    with pytest.raises(httpx.TransportError):
        while time.monotonic() < deadline:
            httpx.post(f"{live.url}/jobs", json=JOB, timeout=0.5)


def test_the_number_of_finished_jobs_is_limited(make_engine: MakeEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr("latentdiff.serving.server_state.KEPT_JOBS", 2)
    server = Server(make_engine())
    jobs = [server.engine.submit(request(seed=k, steps=1)) for k in range(4)]
    for job in jobs:
        job.wait(60)
        server.keep(job)
    assert list(server.finished) == [job.id for job in jobs[2:]]
