"""OpenAI's images API, through OpenAI's own client."""

import base64
import io
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from PIL import Image

from latentdiff.serving.limits import Limits
from tests.serving.conftest import MakeLive
from tests.serving.live import Live
from tests.serving.test_engine import MASK, PICTURE, slow, until_step

PROMPT = "a red apple"


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    return client_of(live)


def client_of(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60)


def opened(b64: str | None) -> Image.Image:
    assert b64 is not None
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def test_images_are_generated_with_extensions(client: openai.OpenAI) -> None:
    extra = {"seed": 7, "num_inference_steps": 3, "guidance_scale": 2.0, "negative_prompt": "wrong colours"}
    made = client.images.generate(prompt=PROMPT, n=2, size="32x16", model="small", extra_body=extra)  # type: ignore[call-overload]
    assert made.size == "32x16" and made.output_format == "png" and made.created > 0 and made.usage is not None
    assert [opened(image.b64_json).size for image in made.data] == [(32, 16)] * 2
    assert "Steps: 3" in opened(made.data[0].b64_json).text["parameters"]  # type: ignore[attr-defined]
    again = client.images.generate(prompt=PROMPT, size="32x16", extra_body=extra | {"seed": 8})  # type: ignore[call-overload]
    one, other = (opened(image.b64_json).tobytes() for image in (made.data[1], again.data[0]))
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_formats_and_urls(client: openai.OpenAI, live: Live, form: Any) -> None:
    made = client.images.generate(
        prompt=PROMPT, output_format=form, output_compression=50, response_format="url", quality="low"
    )
    assert made.data and made.data[0].url
    answer = httpx.get(made.data[0].url)
    assert answer.headers["content-type"] == f"image/{form}"
    assert Image.open(io.BytesIO(answer.content)).format == form.upper()


def test_streaming_sends_partial_images_and_then_the_image(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt=PROMPT, stream=True, partial_images=2, extra_body={"num_inference_steps": 6, "seed": 1}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    assert all(opened(event.b64_json).size == (16, 16) for event in events)
    plain = client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 6, "seed": 1})
    assert plain.data and plain.data[0].b64_json == events[-1].b64_json


@pytest.mark.parametrize("count", [1, 3])
def test_streaming_without_partial_images_sends_every_image(client: openai.OpenAI, count: int) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, n=count, extra_body={"num_inference_steps": 2})
    assert [event.type for event in stream] == ["image_generation.completed"] * count


@pytest.mark.parametrize(
    ("arguments", "param", "words"),
    [
        ({"size": "huge"}, "size", "WIDTHxHEIGHT"),
        ({"size": "17x16"}, None, "width=17 must be a multiple of 2"),
        ({"background": "transparent"}, "background", "auto"),
        ({"output_format": "svg"}, "output_format", "png"),
        ({"partial_images": 9, "stream": True}, "partial_images", "3"),
        ({"extra_body": {"num_inference_step": 9}}, "num_inference_step", "Extra inputs are not permitted"),
        ({"extra_body": {"num_inference_steps": 999}}, "num_inference_steps", "num_inference_steps=999 is above"),
        ({"size": "9000x9000"}, "size", "size=81000000 is above"),
        ({"prompt": "x" * 30_000}, "prompt", "prompt length=30000 is above"),
    ],
)
def test_errors_have_openais_format(client: openai.OpenAI, arguments: Any, param: str | None, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": PROMPT, **arguments})
    assert words in caught.value.message and caught.value.param == param
    assert caught.value.type == "invalid_request_error" and caught.value.request_id


def test_unknown_models_are_not_found_and_hosted_names_are_the_default(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'small'"):
        client.images.generate(prompt=PROMPT, model="smal")
    assert client.images.generate(prompt=PROMPT, model="gpt-image-2", extra_body={"num_inference_steps": 1}).data
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "latentdiff"


def test_a_full_queue_is_a_rate_limit(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live(limits=Limits(queue=1))
    slow(live.server.engine, monkeypatch)
    body = {"prompt": PROMPT, "images": 8, "steps": 150}
    job = httpx.post(f"{live.url}/jobs", json=body).json()
    with pytest.raises(openai.RateLimitError, match="8 images are ahead") as caught:
        client_of(live).images.generate(prompt=PROMPT, n=2)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    httpx.delete(f"{live.url}/jobs/{job['id']}")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_disconnects_leaves_the_batch(make_live: MakeLive, monkeypatch: Any, streaming: bool) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch)
    body = {"prompt": PROMPT, "num_inference_steps": 150, "stream": streaming, "partial_images": 3}
    url = f"{live.url}/v1/images/generations"
    if streaming:
        with httpx.stream("POST", url, json=body) as answer:
            next(answer.iter_lines())
            (job,) = live.server.engine.queue.jobs
    else:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url, json=body, timeout=0.3)
        (job,) = live.server.engine.queue.jobs
    until_step(job)
    with pytest.raises(Exception, match="cancelled"):
        job.wait(10)
    assert job.done[0] < 150


def test_errors_inside_a_stream_are_raised_by_the_client(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()
    pipe = live.server.engine.models.get("small")
    monkeypatch.setattr(pipe, "step", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(openai.APIError, match="out of memory"):
        list(client_of(live).images.generate(prompt=PROMPT, stream=True))


def test_a_full_disk_affects_only_urls(make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentdiff.serving.files.atomic_path", full)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    client = client_of(live)
    with pytest.raises(openai.InternalServerError, match="response_format=b64_json"):
        client.images.generate(prompt=PROMPT, response_format="url", extra_body={"num_inference_steps": 1})
    assert client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 1}).data
    large = file(Image.effect_noise((700, 700), 90).convert("RGB"))
    assert len(large[1]) > 2**20
    body = {"num_inference_steps": 2}
    assert client.images.edit(image=large, prompt=PROMPT, size="16x16", extra_body=body).data


def file(image: Image.Image, name: str = "upload") -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return name, buffer.getvalue()


def test_edits_repaint_where_the_mask_is_transparent(client: openai.OpenAI) -> None:
    mask = PICTURE.copy()
    mask.putalpha(MASK.point([255 - level for level in range(256)]))
    made = client.images.edit(
        image=file(PICTURE), mask=file(mask), prompt=PROMPT, extra_body={"seed": 3, "num_inference_steps": 4}
    )
    assert made.data
    changed = np.asarray(opened(made.data[0].b64_json)).astype(int) - np.asarray(PICTURE)
    inside = np.asarray(MASK) > 0
    assert np.abs(changed[inside]).mean() > np.abs(changed[~inside]).mean()
    events = list(client.images.edit(image=file(PICTURE), prompt=PROMPT, stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_variations_work_and_invalid_edits_are_errors(client: openai.OpenAI) -> None:
    varied = client.images.create_variation(image=file(PICTURE), n=2, response_format="b64_json")
    assert len(varied.data or []) == 2
    for arguments, words in (
        ({"image": file(PICTURE), "prompt": PROMPT, "background": "transparent"}, "background"),
        ({"image": ("x.png", b"no image"), "prompt": PROMPT}, "Invalid encoded image"),
        ({"image": [file(PICTURE), file(PICTURE)], "prompt": PROMPT}, "image contains 2 files"),
        ({"image": file(PICTURE), "mask": file(MASK.resize((8, 8))), "prompt": PROMPT}, "the mask is"),
        ({"image": file(PICTURE), "prompt": PROMPT, "extra_body": {"strength": 1.7}}, "strength=1.7"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.images.edit(**arguments)  # type: ignore[call-overload]
