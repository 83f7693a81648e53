"""AUTOMATIC1111's API, through two of its clients and with requests of others."""

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import sd_backend_client
import webuiapi
from PIL import Image

from latentdiff.serving.errors import CancelledError
from latentdiff.serving.job import Job
from latentdiff.serving.server_state import Settings
from tests.serving.conftest import MakeEngine, MakeLive, request
from tests.serving.live import Live
from tests.serving.test_engine import MASK, PICTURE, slow, until_step

BODY = {"prompt": "a red apple", "steps": 3, "width": 16, "height": 16, "seed": 7, "cfg_scale": 2}


def post(live: Live, route: str, **body: Any) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{live.url}/sdapi/v1/{route}", content=json.dumps(body), headers=headers, timeout=60)


def as_text(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def first_job(live: Live) -> Job:
    deadline = time.monotonic() + 20
    while not (jobs := live.server.engine.queue.jobs) and time.monotonic() < deadline:
        time.sleep(0.005)
    return jobs[0]


def webui(live: Live, **options: Any) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(port=live.port, sampler="Euler a", steps=3, **options)


def test_webuiapi_makes_images(live: Live) -> None:
    api = webui(live)
    result = api.txt2img(prompt="a red apple", seed=7, width=32, height=16, cfg_scale=2, batch_size=2)
    assert [image.size for image in result.images] == [(32, 16)] * 2
    assert result.info["all_seeds"] == [7, 8] and result.info["sampler_name"] == "Euler a"
    line = result.images[0].text["parameters"]
    assert line == result.info["infotexts"][0]
    assert line.startswith("a red apple\nSteps: 3, Sampler: Euler a, ") and "CFG scale: 2, Seed: 7, Size: 32x16" in line
    assert api.png_info(result.images[0]).info == line


def test_webuiapi_makes_variations(live: Live) -> None:
    common: dict[str, Any] = {
        "prompt": "x",
        "seed": 7,
        "width": 16,
        "height": 16,
        "batch_size": 2,
        "scheduler": "Karras",
    }
    result = webui(live).txt2img(**common, subseed=11, subseed_strength=0.3)
    info = result.info
    assert (info["all_seeds"], info["all_subseeds"], info["subseed_strength"]) == ([7, 7], [11, 12], 0.3)
    assert "Variation seed: 12, Variation seed strength: 0.3" in info["infotexts"][1]
    body = {"infotext": info["infotexts"][1], "batch_size": 1}
    again = post(live, "txt2img", **body).json()
    assert json.loads(again["info"])["infotexts"] == [info["infotexts"][1]]
    plain = webui(live).txt2img(**common | {"batch_size": 1})
    pairs = [(plain.image, result.images[1], False), (opened(again["images"][0]), result.images[1], True)]
    for one, other, same in pairs:
        distance = np.abs(np.asarray(one).astype(int) - np.asarray(other)).max()
        assert (distance <= 1) == same


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_webuiapi_changes_images(live: Live) -> None:
    api = webui(live)
    common = {"prompt": "a red apple", "seed": 7, "width": 16, "height": 16, "denoising_strength": 0.5}
    whole = api.img2img(images=[PICTURE], **common)
    assert whole.image.size == (16, 16)
    masked = api.img2img(images=[PICTURE], mask_image=MASK, mask_blur=0, inpaint_full_res=False, **common)
    changed = np.asarray(masked.image).astype(int) - np.asarray(PICTURE)
    assert not changed[np.asarray(MASK) == 0].any() and changed[np.asarray(MASK) > 0].any()


def test_webuiapi_reads_lists_and_sets_options(live: Live) -> None:
    api = webui(live)
    assert api.util_get_model_names() == ["small"] and "DPM++ 2M" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names() and api.get_upscalers()[0]["name"] == "None"
    api.util_set_model("small")
    assert api.util_get_current_model() == "small"
    assert api.get_progress()["progress"] == 0.0 and api.get_memory()["ram"]["total"] > 0
    assert api.get_options()["samples_format"] == "png" and "forge_preset" not in api.get_options()
    assert api.extra_single_image(PICTURE, upscaler_1="Lanczos", upscaling_resize=2).image.size == (32, 32)
    for listed in (api.get_cmd_flags, api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles):
        assert not listed()
    assert api.get_scripts() == {"txt2img": [], "img2img": []} and len(api.get_latent_upscale_modes()) == 2
    assert api.get_loras() == [] and api.get_embeddings()["loaded"] == {}
    api.refresh_checkpoints()


def test_sd_backend_client(live: Live) -> None:
    backend = sd_backend_client.connect_to_backend(live.url)
    assert isinstance(backend, sd_backend_client.A1111Webservice)
    params = sd_backend_client.DiffusionParams(prompt="a red apple", steps=3, width=16, height=16, seed=7)
    result = backend.submit_txt2img(params).wait(timeout=60, poll_interval=0.05)
    assert result.images[0].size == (16, 16)
    assert [option.name for option in backend.list_checkpoints()] == ["small"]
    assert backend.list_samplers() and backend.list_schedulers() and backend.list_upscalers()
    assert backend.submit_upscale(PICTURE, 64, 32).wait(timeout=60, poll_interval=0.05).images[0].size == (64, 32)


def test_sd_backend_client_cancels(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch, 0.05)
    backend = sd_backend_client.connect_to_backend(live.url)
    params = sd_backend_client.DiffusionParams(prompt="x", steps=150, width=16, height=16)
    handle = backend.submit_txt2img(params)
    job = first_job(live)
    until_step(job)
    progress = handle.poll()
    assert progress.status is sd_backend_client.GenerationStatus.ACTIVE
    handle.cancel()
    job.wait(30)
    assert job.done[0] < 150


def test_interrupting_returns_the_current_predictions(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch, 0.05)
    answers: list[httpx.Response] = []
    body = BODY | {"steps": 150, "force_task_id": "mine"}
    thread = threading.Thread(target=lambda: answers.append(post(live, "txt2img", **body)))
    thread.start()
    until_step(first_job(live), 2)
    state = httpx.get(f"{live.url}/sdapi/v1/progress").json()
    assert 0 < state["progress"] < 1 and state["state"]["job_count"] == 1 and state["state"]["sampling_steps"] == 150
    assert Image.open(io.BytesIO(base64.b64decode(state["current_image"]))).size == (16, 16)
    task = httpx.post(f"{live.url}/internal/progress", json={"id_task": "mine"}).json()
    assert task["active"] and task["live_preview"].startswith("data:image/png;base64,")
    assert httpx.get(f"{live.url}/internal/pending-tasks").json() == {"size": 1, "tasks": ["mine"]}
    assert post(live, "interrupt").status_code == 200
    thread.join(30)
    assert len(answers[0].json()["images"]) == 1
    assert httpx.post(f"{live.url}/internal/progress", json={"id_task": "mine"}).json()["completed"]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "3", "width": "16.0", "cfg_scale": "2", "seed": 7.0},
        {"url": "http://x", "auth": "", "restore_faces": False, "override_settings": {"CLIP_stop_at_last_layers": 1.0}},
        {"sampler_name": "DPM++ 2M Karras"},
        {"sampler_name": "Euler a", "scheduler": "karras"},
        {"override_settings": {"sd_model_checkpoint": "small.safetensors [0123456789]"}},
        {"alwayson_scripts": {"ControlNet": {"args": []}}, "styles": [], "script_name": None},
    ],
)
def test_bodies_of_other_clients_are_accepted(live: Live, change: dict[str, Any]) -> None:
    answer = post(live, "txt2img", **BODY | change)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert not found["images"][0].startswith("data:")
    info = json.loads(found["info"])
    assert (info["seed"], info["width"], info["restore_faces"], info["styles"]) == (7, 16, False, [])
    if "Karras" in str(change) or "karras" in str(change):
        assert "Schedule type: Karras" in info["infotexts"][0]


@pytest.mark.parametrize(
    ("route", "change", "status", "words"),
    [
        ("txt2img", {"sampler_name": "Euler b"}, 404, "Sampler not found"),
        ("txt2img", {"scheduler": "carras"}, 404, "did you mean 'Karras'"),
        ("txt2img", {"restore_faces": True}, 422, "restore_faces is not supported"),
        ("txt2img", {"script_name": "x/y/z plot"}, 422, "script_name is not supported"),
        ("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [{"model": "x"}]}}}, 422, "alwayson_scripts"),
        ("txt2img", {"prompt": "x <lora:ink:0.5>"}, 404, "LoRA 'ink' is unknown"),
        ("txt2img", {"steps": 1000}, 400, "limit of 150"),
        ("txt2img", {"batch_size": 8, "n_iter": 3}, 400, "batch_size*n_iter=24 is above this server's limit of 16"),
        ("txt2img", {"batch_size": -3, "n_iter": -1}, 400, "batch_size=-3 must be at least 1"),
        ("txt2img", {"force_task_id": "\ud800"}, 400, "half a surrogate pair"),
        ("txt2img", {"override_settings": {"x": ["\udfff"]}}, 400, "half a surrogate pair"),
        ("txt2img", {"steps": "many"}, 422, "steps"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "other"}}, 404, "model='other' is unknown"),
        ("img2img", {}, 404, "Init image not found"),
        ("img2img", {"init_images": ["!!!"]}, 400, "Invalid encoded image"),
        ("img2img", {"init_images": ["http://169.254.169.254/x"]}, 400, "does not fetch URLs"),
        ("png-info", {"image": "AAAA"}, 400, "Invalid encoded image: unknown format; send a PNG"),
        ("extra-single-image", {"image": as_text(PICTURE), "resize_mode": 2}, 400, "resize_mode=2 is not supported"),
        ("extra-single-image", {"image": "AAAA"}, 400, "Invalid encoded image"),
    ],
)
def test_errors_have_a1111s_format(live: Live, route: str, change: dict[str, Any], status: int, words: str) -> None:
    answer = post(live, route, **BODY | change)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert set(answer.json()) == {"error", "detail", "body", "errors"}


def test_integers_keep_their_digits_and_zero_is_a_seed(live: Live) -> None:
    for seed, wanted in ((2**53 + 1, 2**53 + 1), (str(2**53 + 1), 2**53 + 1), ("7.0", 7), (0, 0)):
        info = json.loads(post(live, "txt2img", **BODY | {"seed": seed}).json()["info"])
        assert info["seed"] == wanted
    info = json.loads(post(live, "txt2img", **BODY | {"subseed": 0, "subseed_strength": 0.5}).json()["info"])
    assert (info["subseed"], info["all_subseeds"]) == (0, [0])


def test_an_infotext_has_the_limit_of_a_prompt(live: Live) -> None:
    answer = post(live, "txt2img", **BODY | {"infotext": "Steps: 2, " * 2001})
    assert answer.status_code == 400 and "infotext length=20010 is above this server's limit of 20000" in answer.text


def test_unfinished_tasks_are_not_forgotten(make_engine: MakeEngine, monkeypatch: Any) -> None:
    """Whatever their number, and also if two have the same id."""
    from latentdiff.serving.api import a1111
    from latentdiff.serving.server_state import Server

    monkeypatch.setattr(a1111, "KEPT_TASKS", 2)
    server = Server(make_engine(start=False))
    jobs = [server.engine.submit(request(seed=k)) for k in range(4)]
    for job, name in zip(jobs, ("a", "b", "b", None), strict=True):
        a1111._register(server, job, name)
    assert set(server.tasks.values()) == set(jobs) and server.tasks["b"] is jobs[2]
    for job in jobs[:3]:
        job.fail(CancelledError("the job was cancelled"))
    a1111._register(server, last := server.engine.submit(request()), "last")
    assert list(server.tasks.values()) == [jobs[3], last]


def test_what_has_no_effect_here_but_clients_send_is_accepted(live: Live) -> None:
    whole = {"init_images": [as_text(PICTURE)], "mask": as_text(MASK), "denoising_strength": 1}
    for change in ({"inpainting_fill": 2}, {"inpaint_full_res": True, "resize_mode": 2}, {"image_cfg_scale": 1.5}):
        assert post(live, "img2img", **BODY | whole | change).status_code == 200
    answer = post(live, "img2img", **BODY | whole | {"image_cfg_scale": 3})
    assert answer.status_code == 400 and "image_guidance_scale=3.0 requires an Instruct" in answer.json()["detail"]


def test_finished_tasks_keep_no_images(live: Live) -> None:
    assert post(live, "img2img", **BODY, init_images=[as_text(PICTURE)], force_task_id="done").status_code == 200
    job = live.server.tasks["done"]
    assert job.over and not job.images and not job.request.settings
    assert httpx.post(f"{live.url}/internal/progress", json={"id_task": "done"}).json()["completed"]


def test_all_options_may_be_posted_back(live: Live) -> None:
    options = httpx.get(f"{live.url}/sdapi/v1/options").json() | {"unknown": None, "sd_vae": None}
    assert post(live, "options", **options).status_code == 200
    assert post(live, "options", sd_model_checkpoint="other").status_code == 404


def test_basic_authentication(make_live: MakeLive) -> None:
    live = make_live(Settings(key="me:sesame"))
    assert post(live, "interrupt").headers["www-authenticate"].startswith("Basic")
    assert webui(live, username="me", password="sesame").get_options()["samples_format"] == "png"


def test_loras_of_prompts_change_the_image(make_live: MakeLive, lora_file: Path) -> None:
    from latentdiff.serving.models import LoraSpec

    live = make_live(loras=[LoraSpec("ink", lora_file)])
    plain, tagged, again = (
        post(live, "txt2img", **BODY | {"prompt": prompt}).json()
        for prompt in ("a red apple", "a red apple<lora:ink:1>", "a red apple")
    )
    assert plain["images"][0] == again["images"][0] != tagged["images"][0]
    assert json.loads(tagged["info"])["prompt"] == "a red apple<lora:ink:1>"
    assert httpx.get(f"{live.url}/sdapi/v1/loras").json()[0]["name"] == "ink"
