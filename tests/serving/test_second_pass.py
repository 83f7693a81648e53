"""Images with a second pass, in tiles, and seamless ones: the same as the pipeline's, through every API."""

import asyncio
import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import torch
import webuiapi
from PIL import Image
from safetensors.torch import save_file

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError
from latentdiff.hires import Hires, generate_hires
from latentdiff.models.esrgan import RRDBNet
from latentdiff.recipe.files import CHUNK
from latentdiff.recipe.schema import Recipe
from latentdiff.serving.errors import QueueFullError
from latentdiff.serving.job import ImageRequest
from latentdiff.serving.limits import Limits
from latentdiff.serving.models import LoraSpec
from latentdiff.serving.server_state import Server
from latentdiff.serving.upscalers import UpscalerStore
from tests.serving.conftest import OPTIONS, MakeEngine, MakeLive, request
from tests.serving.live import Live
from tests.serving.test_engine import MASK, PICTURE, WAIT

JOB = {"prompt": "a red apple", "steps": 3, "seed": 5, "width": 16, "height": 16}


def close(images: list[Image.Image], others: list[Image.Image]) -> bool:
    pairs = [(np.asarray(a).astype(int), np.asarray(b).astype(int)) for a, b in zip(images, others, strict=True)]
    return all(a.shape == b.shape and np.abs(a - b).max() <= 1 for a, b in pairs)


def with_hires(hires: Hires, **changes: Any) -> ImageRequest:
    return request(hires=hires, hires_size=hires.enlarged_size((16, 16), 2), **changes)


@pytest.fixture(scope="module")
def esrgan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upscaler") / "sharp.safetensors"
    save_file(RRDBNet(8, 4, 1).state_dict(), path)
    return path


def test_images_with_a_second_pass_are_those_of_the_pipeline(
    make_engine: MakeEngine, model_folder: Path, esrgan: Path
) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, **OPTIONS)  # type: ignore[arg-type]
    engine = make_engine(start=False)
    kinds = [Hires(1.5), Hires(2, 0.5, 6, "latent"), Hires(2, upscaler=esrgan)]
    jobs = [engine.submit(with_hires(hires, images=2, steps=4)) for hires in kinds]
    others = [engine.submit(request(seed=k)) for k in range(5)]
    engine.start()
    for hires, job in zip(kinds, jobs, strict=True):
        images = [image.image for image in job.wait(WAIT)]
        alone = [generate_hires(pipe, hires, **request(steps=4).arguments(k)).images[0] for k in range(2)]
        assert close(images, alone)
        assert job.done == [4 + int((hires.steps or 4) * hires.strength)] * 2
    assert all(other.wait(WAIT) for other in others)


def test_seamless_images_tiles_and_variations_are_those_of_the_pipeline(
    make_engine: MakeEngine, model_folder: Path
) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, **OPTIONS)  # type: ignore[arg-type]
    engine = make_engine(start=False)
    settings: list[dict[str, Any]] = [{}, {"seamless": "x"}, {"seamless": "x,y"}, {"tile": 16}]
    requests = [request(width=32, settings=each, seed=k) for each in settings for k in range(2)]
    requests.append(request(width=32, variation_seed=3, variation_strength=0.4))
    jobs = [engine.submit(each) for each in requests]
    engine.start()
    images = [job.wait(WAIT)[0].image for job in jobs]
    assert close(images, [pipe(**each.arguments(0)).images[0] for each in requests])
    assert not close(images[:2], images[2:4]) and not close(images[1:2], images[-1:])


def test_an_interrupt_between_the_passes_gives_the_first_image(make_engine: MakeEngine) -> None:
    engine, release = make_engine(), threading.Event()
    engine.finisher.upscale(lambda: release.wait(WAIT))
    job = engine.submit(with_hires(Hires(2)))
    deadline = time.monotonic() + WAIT
    while not job.finishing and time.monotonic() < deadline:
        time.sleep(0.005)
    engine.stop_jobs([job])
    while not job.interrupted and time.monotonic() < deadline:
        time.sleep(0.005)
    release.set()
    (image,) = job.wait(WAIT)
    assert image.stopped and image.image.size == (16, 16) and engine.queue.drain(WAIT)


def test_a_second_pass_of_a_masked_image_is_refused(make_engine: MakeEngine) -> None:
    masked = with_hires(Hires(2), settings={"image": PICTURE, "mask_image": MASK})
    with pytest.raises(InputError, match="cannot be combined with a mask"):
        make_engine(start=False).submit(masked)


def test_requests_that_wait_for_their_model_count_towards_the_queue(make_engine: MakeEngine, monkeypatch: Any) -> None:
    engine = make_engine(start=False, limits=Limits(queue=2))
    monkeypatch.setattr(engine.models, "get", lambda name: None)

    async def ask() -> list[Any]:
        server = Server(engine)
        waiting = [asyncio.create_task(server.request("x", images=images)) for images in (6, 4, 1)]
        done, rest = await asyncio.wait(waiting, timeout=0.2)
        for task in rest:
            task.cancel()
        return [task.exception() for task in done]

    with ThreadPoolExecutor(1) as pool:  # the main thread may have an event loop of Playwright's
        (error,) = pool.submit(asyncio.run, ask()).result()
    assert isinstance(error, QueueFullError) and "10 images are ahead" in str(error)


def finished(live: Live, **changes: Any) -> tuple[dict[str, Any], Any]:
    """The state of a finished job, and its first image."""
    accepted = httpx.post(f"{live.url}/jobs", json=JOB | changes).json()
    deadline = time.monotonic() + WAIT
    while (state := httpx.get(f"{live.url}/jobs/{accepted['id']}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert state["error"] is None
    return state, Image.open(io.BytesIO(httpx.get(live.url + state["images"][0]["url"]).content))


def test_our_own_api_takes_a_second_pass(make_live: MakeLive, esrgan: Path) -> None:
    live = make_live(upscalers=UpscalerStore({"sharp": esrgan}))
    assert "sharp" in httpx.get(f"{live.url}/v1/capabilities").json()["upscalers"]
    state, image = finished(live, hires=1.5, hires_steps=4, upscaler="sharp", seamless="x")
    recipe = Recipe.model_validate_json(image.text[CHUNK])
    assert image.size == (24, 24) and state["request"]["upscaler"] == "sharp"
    assert (recipe.width, recipe.hires, recipe.hires_steps, recipe.seamless) == (16, 1.5, 4, "x")
    assert recipe.upscaler == str(esrgan) and "Size: 16x16" in image.text["parameters"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"hires_strength": 0.5}, 400, "hires_strength requires a second pass; set hires to 2"),
        ({"hires": 9}, 400, "hires=9 must be greater than 1 and at most 8"),
        ({"hires": 2, "upscaler": "blunt"}, 404, "upscaler='blunt' is unknown"),
        ({"hires": 8, "width": 512, "height": 512}, 400, "second pass=16777216 is above this server's limit"),
        ({"hires": 2, "hires_steps": 1000}, 400, "hires_steps=1000 is above this server's limit of 150"),
        ({"width": 10**400}, 400, "is above this server's limit of 4194304 pixels"),
        ({"prompt": "x <lora:ink:1>"}, 404, "LoRA 'ink' is unknown"),
        ({"negative_prompt": "x <lora:ink:1>"}, 400, "is in a negative prompt"),
        ({"clip_skip": 50}, 400, "clip_skip=50 must be from 0"),
    ],
)
def test_errors_name_the_field_and_its_limit(live: Live, change: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{live.url}/jobs", json=JOB | change)
    assert answer.status_code == status and words in answer.json()["error"]["message"], answer.text


def test_loras_named_in_a_prompt_are_used(make_live: MakeLive, lora_file: Path) -> None:
    live = make_live(loras=[LoraSpec("ink", lora_file)])
    _, tagged = finished(live, prompt="a red apple<lora:ink:0.7>")
    state, named = finished(live, loras={"ink": 0.7})
    _, plain = finished(live)
    _, untagged = finished(live, prompt="a red apple<lora:ink:0>", loras={"ink": 0.7})
    assert state["request"]["loras"] == {"ink": [0.7, 0.7]}
    assert tagged.tobytes() == named.tobytes() != plain.tobytes() == untagged.tobytes()


def test_learned_words_are_read(make_live: MakeLive, tmp_path: Path) -> None:
    save_file({"<toy>": torch.full((2, 32), 0.5)}, tmp_path / "toy.safetensors")
    save_file({"<wide>": torch.zeros(1, 7)}, tmp_path / "wide.safetensors")
    live = make_live(embeddings=[tmp_path / "toy.safetensors", tmp_path / "wide.safetensors"])
    _, learned = finished(live, prompt="a <toy>")
    _, other = finished(live, prompt="a <top>")
    assert learned.tobytes() != other.tobytes()
    recipe = Recipe.model_validate_json(learned.text[CHUNK])
    assert recipe.embeddings == ("toy.safetensors",)
    assert [*httpx.get(f"{live.url}/sdapi/v1/embeddings").json()["loaded"]] == ["<toy>"]


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_webuiapi_takes_a_second_pass_and_upscalers(make_live: MakeLive, esrgan: Path) -> None:
    live = make_live(upscalers=UpscalerStore({"sharp": esrgan}))
    api = webuiapi.WebUIApi(port=live.port, sampler="Euler a", steps=4)
    common: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "width": 16, "height": 16}
    latent = api.txt2img(**common, enable_hr=True, denoising_strength=0.5)
    assert latent.image.size == (32, 32) and latent.info["denoising_strength"] == 0.5
    assert latent.info["extra_generation_params"] == {"Hires upscale": 2.0, "Hires upscaler": "latent"}
    assert "Hires upscale: 2" in latent.info["infotexts"][0]
    sharp = api.txt2img(**common, enable_hr=True, hr_upscaler="sharp", hr_resize_x=24, hr_second_pass_steps=2)
    assert sharp.image.size == (24, 24) and sharp.info["extra_generation_params"]["Hires steps"] == 2
    assert "sharp" in [one["name"] for one in api.get_upscalers()]
    assert api.extra_single_image(PICTURE, upscaler_1="sharp", upscaling_resize=4).image.size == (64, 64)
    tiled = api.txt2img(**common, tiling=True)
    assert tiled.info["extra_generation_params"] == {"Tiling": True} and "Tiling: True" in tiled.info["infotexts"][0]


def test_omitted_fields_are_read_from_an_infotext(live: Live) -> None:
    def post(**body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{live.url}/sdapi/v1/txt2img", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.json()["info"])

    full = {"prompt": "a red apple", "negative_prompt": "blurry", "steps": 3, "seed": 9, "width": 16, "height": 32}
    given = post(**full, sampler_name="DPM++ 2M", scheduler="Karras", cfg_scale=3.5)
    again = post(infotext=given["infotexts"][0], prompt="a green apple")
    assert (
        again["prompt"] == "a green apple"
        and again["infotexts"][0].split("\n")[1:] == given["infotexts"][0].split("\n")[1:]
    )
    second = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "hr_second_pass_steps": 2, "tiling": True}
    given = post(**full, **second, denoising_strength=0.5, sampler_name="DPM++ 2M", scheduler="Karras")
    assert "Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Latent (bicubic), Tiling: True" in given["infotexts"][0]
    assert post(infotext=given["infotexts"][0])["infotexts"] == given["infotexts"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"enable_hr": True, "hr_upscaler": "Latent (nearest)"}, "upscaler='Latent (nearest)' is unknown"),
        ({"enable_hr": True, "hr_prompt": "other"}, "hr_prompt is not supported"),
        ({"enable_hr": True, "hr_sampler_name": "DDIM"}, "hr_sampler_name is not supported"),
        ({"enable_hr": True, "hr_checkpoint_name": "other"}, "hr_checkpoint_name is not supported"),
        ({"enable_hr": True, "hr_resize_x": 32, "hr_resize_y": 48}, "change the shape of 16x16"),
        ({"enable_hr": True, "hr_scale": 1000}, "hires=1000 must be greater than 1 and at most 8"),
        ({"firstphase_width": 8}, "firstphase_width is not supported"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w is not supported"),
        ({"refiner_checkpoint": "sdxl"}, "refiner_checkpoint is not supported"),
        ({"s_churn": 0.5}, "s_churn is not supported"),
        ({"styles": ["film"]}, "styles is not supported"),
        ({"override_settings": {"sd_vae": "other.pt"}}, "override_settings.sd_vae is not supported"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "many"}}, "is not a number; try 1"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 90}}, "clip_skip=89 must be from 0"),
        ({"infotext": "a red apple"}, "infotext contains no settings"),
    ],
)
def test_fields_of_a1111s_clients_are_used_or_refused_by_name(live: Live, change: dict[str, Any], words: str) -> None:
    body = {"prompt": "a red apple", "steps": 2, "width": 16, "height": 16, "enable_hr": False}
    answer = httpx.post(f"{live.url}/sdapi/v1/txt2img", json=body | change, timeout=60)
    assert answer.status_code in (400, 404, 422) and words in answer.json()["detail"], answer.text


def test_values_without_an_effect_are_accepted(live: Live) -> None:
    body = {
        "prompt": "a red apple", "steps": 2, "width": 16, "height": 16, "enable_hr": True, "hr_scale": 1.5,
        "hr_sampler_name": "Use same sampler", "hr_prompt": "a red apple", "hr_upscaler": "Lanczos", "s_noise": 1.0,
        "override_settings": {"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1}, "refiner_checkpoint": "None",
    }  # fmt: skip
    answer = httpx.post(f"{live.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert answer.status_code == 200 and decoded(answer.json()["images"][0]).size == (24, 24), answer.text
