"""The web page in headless Chromium; skipped where there is none."""

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentdiff.serving.limits import Limits
from tests.serving.conftest import MakeLive
from tests.serving.live import Live
from tests.serving.test_engine import PICTURE, slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PAGE = Path(__file__).parents[2] / "latentdiff" / "serving" / "page"
NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context(viewport={"width": 1400, "height": 900}, bypass_csp=True, locale="en-GB")
    made.set_default_timeout(20_000)
    yield made
    made.close()


def opened(context: Any, live: Live) -> Any:
    page = context.new_page()
    page.goto(live.url)
    page.locator("#model option").first.wait_for(state="attached")
    return page


def generate(page: Any, prompt: str = "a red apple", steps: int = 3) -> None:
    page.fill("#prompt", prompt)
    page.fill("#steps", str(steps))
    page.click("#generate")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_generate_view_and_use_the_settings_again(context: Any, live: Live) -> None:
    page = opened(context, live)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.locator("#empty").wait_for()
    generate(page, "a red apple <b>")
    page.locator("#gallery li").wait_for()
    page.click("#gallery .open")
    assert "a red apple <b>" in page.locator("#viewer dl").inner_text()
    page.get_by_role("button", name="Use these settings").click()
    assert page.input_value("#prompt") == "a red apple <b>" and page.input_value("#seed") != ""
    page.reload()
    page.locator("#gallery li").wait_for()
    page.locator("#model option").first.wait_for(state="attached")
    assert page.input_value("#prompt") == "a red apple <b>" and page.input_value("#steps") == "3"
    page.click("#gallery .open")
    page.get_by_role("button", name="Delete").click()
    page.locator("#empty").wait_for()
    assert all(url.startswith((live.url, "blob:", "data:")) for url in requests)


def test_a_reload_and_a_second_tab_show_a_job_and_cancelling_ends_it(
    context: Any, make_live: MakeLive, monkeypatch: Any
) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch, 0.05)
    page = opened(context, live)
    generate(page, steps=150)
    page.locator("#queue progress").wait_for()
    page.reload()
    page.locator("#queue .preview[src^='data:image/png']").wait_for()
    second = opened(context, live)
    second.get_by_role("button", name="Cancel").click()
    for tab in (second, page):
        tab.locator("#queue li").wait_for(state="detached")
    assert not live.server.engine.queue.jobs and not page.locator("#gallery li").count()


def test_image_to_image_with_a_painted_mask(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.set_input_files("#file", {"name": "in.png", "mimeType": "image/png", "buffer": png(PICTURE.resize((64, 64)))})
    page.click("#paint")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 60, steps=4)
    page.mouse.up()
    page.click("#done")
    with page.expect_request("**/jobs") as posted:
        generate(page)
    body = posted.value.post_data_json
    mask = Image.open(io.BytesIO(base64.b64decode(body["mask"].split(",")[1]))).convert("L")
    assert mask.size == (64, 64) and 0 < sum(mask.getdata()) / 255 < 64 * 64 and body["strength"] == 0.6
    page.locator("#gallery li").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_accessibility_violations_and_no_overflow_on_a_phone(context: Any, live: Live, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(context, live)
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    generate(page)
    page.locator("#gallery li").wait_for()
    page.set_input_files("#file", {"name": "in.png", "mimeType": "image/png", "buffer": png(PICTURE)})
    page.locator("#source").wait_for()
    for size in ({"width": 1400, "height": 900}, NARROW):
        page.set_viewport_size(size)
        results = Axe().run(page)
        assert not results.response["violations"], results.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#gallery .open")
    assert not Axe().run(page).response["violations"]


def test_chinese(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.click("#language")
    assert page.locator("#generate").inner_text() == "生成"
    page.reload()
    assert page.locator("#generate").inner_text() == "生成" and page.locator("html").get_attribute("lang") == "zh"


def test_both_languages_have_the_same_texts(context: Any, live: Live) -> None:
    page = opened(context, live)
    source = (PAGE / "texts.js").read_text("utf-8")
    keys = page.evaluate("source => {" + source[: source.index("let language")].split("// Every")[0]
                         + source[source.index("const TEXTS") : source.index("let language")]
                         + "return [Object.keys(TEXTS.en), Object.keys(TEXTS.zh)]; }", source)  # fmt: skip
    assert keys[0] == keys[1]
    used = {name for path in PAGE.iterdir() if path.suffix in (".html", ".js") for name in _used(path)}
    assert used <= set(keys[0])


def _used(path: Path) -> set[str]:
    import re

    text = path.read_text("utf-8")
    return set(re.findall(r'data-(?:text|label|alt|placeholder)="(\w+)"', text)) | set(
        re.findall(r'\btext\("(\w+)"', text)
    )


def test_mistakes_are_sentences_in_the_page(context: Any, make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live(limits=Limits(queue=1, body=500_000))
    slow(live.server.engine, monkeypatch, 0.05)
    page = opened(context, live)
    problem = page.locator("#problem")
    page.click("#generate")
    assert problem.inner_text() == "Write a prompt first."
    page.fill("#prompt", "x" * 100_000)
    page.click("#generate")
    page.get_by_text("limit of 20000 characters").wait_for()
    assert len(page.input_value("#prompt")) == 100_000
    page.set_input_files("#file", {"name": "big.png", "mimeType": "image/png", "buffer": bytes(600_000)})
    page.get_by_text("big.png is larger than this server's limit").wait_for()
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.get_by_text("notes.txt is not an image").wait_for()
    page.fill("#images", "8")
    generate(page, steps=150)
    page.locator("#queue li").wait_for()
    page.fill("#images", "2")
    page.click("#generate")
    page.get_by_text("the queue is full").wait_for()


def test_a_dropped_image_of_ours_fills_the_form_and_another_model_is_named(context: Any, live: Live) -> None:
    import httpx2 as httpx

    page = opened(context, live)
    body = {"prompt": "a cat face", "seed": 12, "num_inference_steps": 4}
    made = httpx.post(f"{live.url}/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": base64.b64decode(made)})
    page.locator("#keep:checked").wait_for()
    assert [page.input_value(f"#{name}") for name in ("prompt", "seed", "steps")] == ["a cat face", "12", "4"]
    page.evaluate(
        "fetch('/recipe', {method: 'POST', headers: {'content-type': 'application/json'}, "
        "body: JSON.stringify({image: 'AAAA'})}).then(answer => window.status = answer.status)"
    )
    page.wait_for_function("window.status == 400")
    page.evaluate("localStorage.clear()")


def test_a_server_that_dies_and_returns(context: Any, make_live: MakeLive, monkeypatch: Any) -> None:
    live = make_live()
    slow(live.server.engine, monkeypatch, 0.05)
    page = opened(context, live)
    generate(page, steps=150)
    page.locator("#queue progress").wait_for()
    live.server.engine.close()
    live.close()
    page.locator("#queue .problem").wait_for()
    make_live(port=live.port)
    page.get_by_role("button", name="Dismiss").click()
    generate(page)
    page.locator("#gallery li").wait_for()


@pytest.mark.slow
def test_two_hundred_images_in_the_gallery(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.evaluate(
        """async png => {
            const { saveImage } = await import("/page/store.js");
            const blob = await (await fetch(`data:image/png;base64,${png}`)).blob();
            for (let k = 0; k < 200; k++)
                await saveImage({ id: `x${k}`, blob, created: k, settings: { prompt: `image ${k}` } });
        }""",
        base64.b64encode(png(PICTURE)).decode(),
    )
    page.reload()
    page.locator("#gallery li").nth(199).wait_for(state="attached")
    page.get_by_role("button", name="Open: image 199").click()
    assert "image 199" in page.locator("#viewer").inner_text()


def test_the_page_is_small_and_refers_to_no_other_host() -> None:
    files = [path for path in PAGE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    for path in files:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text
