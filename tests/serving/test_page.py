"""The web page in headless Chromium; skipped if Chromium is not installed."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.serving.limits import Limits
from latentdiff.serving.server_state import Settings
from tests.serving.browsing import CHROMIUM, NARROW, drop, generate, opened, png, tab_to, violations
from tests.serving.conftest import MakeLive
from tests.serving.live import Live
from tests.serving.test_engine import PICTURE, slow

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PAGE = Path(__file__).parents[2] / "latentdiff" / "serving" / "page"


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
    page.locator("#generate:enabled").wait_for()
    assert page.input_value("#prompt") == "a red apple <b>" and page.input_value("#steps") == "3"
    page.click("#gallery .open")
    page.get_by_role("button", name="Delete").click()
    page.locator("#empty").wait_for()
    page.click("#restore")
    page.locator("#gallery li").wait_for()
    page.click("#gallery .open")
    page.get_by_role("button", name="Delete").click()
    page.locator("#gallery li").wait_for(state="detached")
    page.reload()
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
    page = opened(context, live)
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    assert violations(page) == []  # empty
    generate(page)
    page.locator("#gallery li").wait_for()
    page.set_input_files("#file", {"name": "in.png", "mimeType": "image/png", "buffer": png(PICTURE)})
    page.locator("#source").wait_for()
    page.fill("#steps", "1000")
    page.click("#generate")
    page.locator("#problem:not(:empty)").wait_for()
    for size in ({"width": 1400, "height": 900}, NARROW):
        page.set_viewport_size(size)
        assert violations(page) == []
        page.click("#paint")
        assert violations(page) == []
        page.click("#done")
        page.click("#gallery .open")
        assert violations(page) == []
        page.click("#viewer [data-key=close]")


def test_chinese(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.click("#language")
    assert page.locator("#generate").inner_text() == "生成"
    page.reload()
    assert page.locator("#generate").inner_text() == "生成" and page.locator("html").get_attribute("lang") == "zh"


def test_both_languages_have_the_same_texts(context: Any, live: Live) -> None:
    page = opened(context, live)
    source = (PAGE / "texts.js").read_text("utf-8")
    texts = source[source.index("const TEXTS") : source.index("let language")]
    keys = page.evaluate("() => {" + texts + "return [Object.keys(TEXTS.en), Object.keys(TEXTS.zh)]; }")
    assert keys[0] == keys[1]
    used = {name for path in PAGE.iterdir() if path.suffix in (".html", ".js") for name in _used(path)}
    assert used <= set(keys[0])


def _used(path: Path) -> set[str]:
    import re

    text = path.read_text("utf-8")
    return set(re.findall(r'data-(?:text|label|alt|placeholder)="(\w+)"', text)) | set(
        re.findall(r'\btext\("(\w+)"', text)
    )


def test_errors_are_shown_as_sentences_on_the_page(
    context: Any, make_live: MakeLive, monkeypatch: Any, tmp_path: Path
) -> None:
    live = make_live(limits=Limits(queue=1))
    slow(live.server.engine, monkeypatch, 0.05)
    page = opened(context, live)
    problem = page.locator("#problem")
    page.click("#generate")
    assert problem.inner_text() == "Write a prompt first."
    page.fill("#prompt", "x" * 100_000)
    page.click("#generate")
    page.get_by_text("limit of 20000 characters").wait_for()
    assert len(page.input_value("#prompt")) == 100_000
    (tmp_path / "big.png").write_bytes(bytes(60_000_000))
    page.set_input_files("#file", tmp_path / "big.png")
    page.get_by_text("big.png is larger than this server's limit").wait_for()
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.get_by_text("notes.txt is not an image").wait_for()
    page.fill("#images", "8")
    generate(page, steps=150)
    page.locator("#queue li").wait_for()
    page.fill("#images", "2")
    page.click("#generate")
    page.get_by_text("The server's queue is full. Try again in about").wait_for()
    assert page.input_value("#prompt") == "a red apple"
    page.fill("#images", "10")
    page.click("#generate")
    page.get_by_text("images=10 is above 9, this server").wait_for()


def test_a_server_that_does_not_answer_is_stated_and_generate_works_once_it_runs_again(
    context: Any, live: Live
) -> None:
    page = opened(context, live)
    page.route("**/jobs", lambda route: route.abort())
    generate(page)
    page.get_by_text("The server does not answer; what you entered is kept.").wait_for()
    page.unroute("**/jobs")
    page.click("#generate")
    page.locator("#gallery li").wait_for()
    assert page.locator("#problem").inner_text() == ""


def infotext(text: str) -> bytes:
    """A PNG with a recipe as A1111 writes it."""
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def test_a_downloaded_image_can_be_dropped_to_get_its_recipe_back(context: Any, live: Live, tmp_path: Path) -> None:
    page = opened(context, live)
    page.fill("#negative", "blurry")
    page.fill("#seed", "12")
    generate(page, "a cat face", steps=4)
    page.click("#gallery .open")
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Download").click()
    data = Path(downloaded.value.path()).read_bytes()
    assert downloaded.value.suggested_filename == "latentdiff-12.png"
    page.keyboard.press("Escape")
    generate(page, "something else", steps=2)
    drop(page, ("x.png", "image/png", data))
    page.locator("#keep:checked").wait_for()
    values = [page.input_value(f"#{name}") for name in ("prompt", "negative", "seed", "steps")]
    assert values == ["a cat face", "blurry", "12", "4"]


def test_a_recipe_of_a_missing_model_fills_in_the_rest_and_names_the_model(context: Any, live: Live) -> None:
    page = opened(context, live)
    text = (
        "a boat\nNegative prompt: grey\nSteps: 7, Sampler: Euler a, CFG scale: 5.5, Seed: 9, Size: 16x24, Model: other"
    )
    drop(page, ("x.png", "image/png", infotext(text)))
    page.get_by_text("The recipe names the model other, which this server does not have").wait_for()
    names = ("prompt", "negative", "steps", "sampler", "guidance", "seed", "width", "height", "model")
    values = [page.input_value(f"#{name}") for name in names]
    assert values == ["a boat", "grey", "7", "euler_ancestral", "5.5", "9", "16", "24", "small"]
    page.click("#generate")
    page.locator("#gallery li").wait_for()
    assert page.locator("#problem").inner_text() == ""


def test_dropped_files_become_the_input_or_cause_a_message(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.fill("#prompt", "kept")
    drop(page, ("notes.txt", "text/plain", b"hello"))
    page.get_by_text("notes.txt is not an image").wait_for()
    drop(page, ("broken.png", "image/png", b"not a picture"))
    page.get_by_text("broken.png cannot be read").wait_for()
    assert not page.locator("#source").is_visible()
    drop(page, ("photo.png", "image/png", png(PICTURE)))
    page.locator("#source").wait_for()
    assert page.locator("#problem").inner_text() == "" and page.input_value("#prompt") == "kept"


def test_handles_extend_the_image_by_mouse_and_keyboard(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.set_input_files("#file", {"name": "in.png", "mimeType": "image/png", "buffer": png(PICTURE.resize((32, 32)))})
    handle = page.get_by_role("slider", name="Extend right")
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up()
    right = int(page.input_value("#right"))
    assert right > 0 and right % 2 == 0  # the small model's multiple
    top = page.get_by_role("slider", name="Extend top")
    top.press("ArrowUp")
    top.press("Shift+ArrowUp")
    top.press("ArrowDown")
    assert page.input_value("#top") == "8" and top.get_attribute("aria-valuenow") == "8"
    assert page.get_by_text(f"Extended to {32 + right} × 40 pixels").is_visible()
    with page.expect_request("**/jobs") as posted:
        generate(page)
    assert posted.value.post_data_json["extend"] == {"right": right, "top": 8}
    picture = page.locator("#gallery img")
    picture.wait_for()
    assert picture.evaluate("async one => { await one.decode(); return [one.naturalWidth, one.naturalHeight]; }") == [
        32 + right,
        40,
    ]
    page.click("#clear-input")
    page.set_input_files("#file", {"name": "in.png", "mimeType": "image/png", "buffer": png(PICTURE)})
    page.locator("#source").wait_for()
    assert page.input_value("#right") == "0"


def test_the_whole_page_works_by_keyboard(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.locator("#prompt").press("End")
    page.keyboard.type("a red apple on a table")
    for _ in range(len(" on a table")):
        page.keyboard.press("ArrowLeft")
    for _ in range(len("apple")):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Control+ArrowUp")
    page.keyboard.press("Control+ArrowUp")
    assert page.input_value("#prompt") == "a red (apple:1.2) on a table"
    page.keyboard.press("Control+ArrowDown")
    page.fill("#steps", "2")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.locator("#gallery li").wait_for()
    page.locator("#prompt").press("Control+Enter")
    page.locator("#gallery li").nth(1).wait_for()
    tab_to(page, "#gallery .open")
    page.keyboard.press("Enter")
    assert "(apple:1.1)" in page.locator("#viewer dl").inner_text()
    first = page.locator("#viewer img").get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer img").get_attribute("src") != first
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert page.evaluate("document.activeElement.className") == "open"


def test_two_images_are_compared_side_by_side(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.fill("#images", "2")
    page.fill("#seed", "5")
    generate(page)
    page.locator("#gallery li").nth(1).wait_for()
    assert not page.locator("#compare").is_visible()
    for pick in page.locator("#gallery .pick").all():
        pick.check()
    page.click("#compare")
    assert page.locator("#viewer figure").count() == 2
    text = page.locator("#viewer").inner_text()
    assert "5" in text and "6" in text


def test_erasing_and_undoing_change_the_mask(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.set_input_files("#file", {"name": "in.png", "mimeType": "image/png", "buffer": png(PICTURE.resize((64, 64)))})
    page.click("#paint")

    def stroke() -> None:
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 160, box["y"] + 60, steps=3)
        page.mouse.up()

    def white() -> float:
        data = page.evaluate("import('/page/mask.js').then(mask => mask.maskAsBase64())")
        return sum(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("L").getdata()) / 255

    stroke()
    page.keyboard.press("Control+z")
    assert white() == 0
    page.locator("#canvas").press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    assert white() > 0
    page.click("#clear-mask")
    stroke()
    painted = white()
    page.click("#erase")
    stroke()
    assert white() < 0.2 * painted
    page.click("#undo")
    assert white() == painted > 0
    page.click("#clear-mask")
    assert white() == 0


def test_pictures_that_load_do_not_move_the_page(context: Any, live: Live) -> None:
    page = opened(context, live)
    page.fill("#images", "8")
    generate(page)
    page.locator("#gallery li").nth(7).wait_for()
    page.add_init_script(
        "window.shift = 0; "
        "new PerformanceObserver(list => { for (const one of list.getEntries()) shift += one.value; })"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    page.reload()
    page.locator("#gallery li").nth(7).wait_for()
    page.locator("#generate:enabled").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("shift") < 0.1  # "good" in Web Vitals


def test_a_key_is_entered_once(context: Any, make_live: MakeLive) -> None:
    live = make_live(Settings(key="secret"))
    page = context.new_page()
    page.goto(live.url)
    for key in ("wrong", "secret"):
        page.locator("#key").fill(key)
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
    page.locator("#generate:enabled").wait_for()
    page.reload()
    page.locator("#generate:enabled").wait_for()
    generate(page)
    page.locator("#gallery li").wait_for()


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
    page.fill("#prompt", "something else")
    page.get_by_role("button", name="Use these settings").click()
    page.locator("#queue li").wait_for(state="detached")
    assert page.input_value("#prompt") == "a red apple" and page.input_value("#steps") == "150"
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
