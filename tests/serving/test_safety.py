"""The content checker in the server: images that it finds are flagged, blurred or refused in every API."""

import base64
import io
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from PIL import Image

from latentdiff.recipe.files import CHUNK
from latentdiff.recipe.schema import Recipe
from latentdiff.safety import Checked, blurred
from tests.serving.conftest import MakeLive
from tests.serving.test_openai import client_of

BODY = {"prompt": "a red apple", "extra_body": {"seed": 7, "num_inference_steps": 3}}


class FindsAll:
    """A checker that flags every image."""

    def __init__(self, action: str) -> None:
        self.action = action

    def __call__(self, images: list[Image.Image]) -> list[Checked]:
        shown = {"flag": lambda image: image, "blur": blurred, "refuse": lambda _: None}[self.action]
        return [Checked(shown(image), 0.9, True) for image in images]  # type: ignore[operator]


@pytest.mark.parametrize("action", ["flag", "blur"])
def test_flagged_images_state_the_result(make_live: MakeLive, action: str) -> None:
    (plain,) = client_of(make_live()).images.generate(**BODY).data  # type: ignore[arg-type, call-overload]
    live = make_live(checker=FindsAll(action))
    (found,) = client_of(live).images.generate(**BODY).data  # type: ignore[arg-type, call-overload]
    before, after = (Image.open(io.BytesIO(base64.b64decode(image.b64_json))) for image in (plain, found))
    recipe = Recipe.model_validate_json(after.text[CHUNK])  # type: ignore[attr-defined]
    assert (recipe.safety, recipe.safety_score, recipe.flagged) == (action, 0.9, True)
    assert np.array_equal(np.asarray(before), np.asarray(after)) == (action == "flag")
    assert found.model_extra["flagged"] and httpx.get(f"{live.url}/v1/capabilities").json()["safety"] == action


def test_refused_images_are_an_error_that_clients_do_not_repeat(make_live: MakeLive) -> None:
    live = make_live(checker=FindsAll("refuse"))
    with pytest.raises(openai.BadRequestError, match="content checker refused") as caught:
        client_of(live).images.generate(**BODY)  # type: ignore[call-overload]
    assert caught.value.code == "content_policy_violation"
    answer = httpx.post(f"{live.url}/sdapi/v1/txt2img", json={"prompt": "x", "steps": 2, "width": 16, "height": 16})
    assert answer.status_code == 400 and "content checker refused" in answer.json()["detail"]


def test_previews_are_blurred_unless_images_are_only_flagged(make_live: MakeLive, monkeypatch: Any) -> None:
    seen: dict[str, bytes] = {}
    for action in ("flag", "refuse"):
        live = make_live(checker=FindsAll(action))
        body = {"prompt": "x", "stream": True, "partial_images": 1, "seed": 7, "num_inference_steps": 4}
        text = httpx.post(f"{live.url}/v1/images/generations", json=body).text
        seen[action] = text.partition('"b64_json":"')[2].partition('"')[0].encode()
    flat = {action: np.ptp(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for action, data in seen.items()}
    assert flat["refuse"] < flat["flag"]
