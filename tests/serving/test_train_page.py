"""The page at /train in headless Chromium; skipped if Chromium is not installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving.browsing import CHROMIUM, NARROW, drop, png, tab_to, violations
from tests.serving.live import Live
from tests.serving.test_finetunes import fake, source, tuned  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
RED = png(Image.new("RGB", (16, 16), "red"))


def train_page(context: Any, live: Live, name: str = "") -> Any:
    page = context.new_page()
    page.goto(f"{live.url}/train#{name}")
    page.locator("#folder option").first.wait_for(state="attached")
    return page


def create(page: Any, name: str, folder: str = "") -> None:
    page.fill("#name", name)
    page.select_option("#folder", folder)
    page.click("#new button")
    page.locator("#title", has_text=name).wait_for()


def test_a_server_without_fine_tuning_explains_how_to_enable_it(context: Any, live: Live) -> None:
    page = context.new_page()
    page.goto(f"{live.url}/train")
    page.get_by_text("latentdiff serve --train pictures").wait_for()
    assert violations(page) == [] and not page.locator("aside").is_visible()
    page.goto(live.url)
    page.locator("#generate:enabled").wait_for()
    assert not page.locator(".pages").is_visible()


def test_pictures_captions_training_and_trying_the_lora(
    context: Any,
    tuned: Live,  # noqa: F811
    fake: Callable[..., None],  # noqa: F811
    lora_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake("finish")
    monkeypatch.setenv("FAKE_LORA", str(lora_file / "pytorch_lora_weights.safetensors"))
    page = train_page(context, tuned)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    assert violations(page) == []
    create(page, "apples", "apples")
    page.locator("#pictures li").nth(2).wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="Leave out c.png").click()
    page.locator("#pictures li").nth(2).wait_for(state="detached")
    page.get_by_role("textbox", name="Captions of a.png").fill("a shiny apple")
    page.fill("#trigger", "sks style")
    page.get_by_text("Captions saved").wait_for()
    page.reload()
    page.locator("#pictures li").nth(1).wait_for()
    assert page.get_by_role("textbox", name="Captions of a.png").input_value() == "a shiny apple"
    assert page.input_value("#trigger") == "sks style"
    page.click("#start")
    page.locator("#badge", has_text="finished").wait_for()
    page.locator("#samples img[src^=blob]").nth(3).wait_for()
    assert page.locator("#curve svg").is_visible() and "Step 4 of 4" in page.locator("#reached").inner_text()
    for size in (NARROW, {"width": 1400, "height": 900}):
        page.set_viewport_size(size)
        for _ in range(2):
            page.click("#theme")
            assert violations(page) == []
    page.click("#use")
    page.locator("#generate:enabled").wait_for()
    assert page.input_value("#prompt") == "sks style, " and page.get_by_label("apples-4").input_value() == "1"
    page.fill("#steps", "2")
    page.click("#generate")
    page.locator("#gallery li").wait_for()
    assert all(url.startswith((tuned.url, "blob:", "data:")) for url in requests)


@pytest.mark.slow
def test_the_check_names_problems_below_their_pictures_until_something_changes(context: Any, tuned: Live) -> None:  # noqa: F811
    page = train_page(context, tuned)
    create(page, "apples", "apples")
    page.locator("#pictures li").nth(2).wait_for()
    page.click("#check")
    page.get_by_text("1 of 3 pictures cannot be used").wait_for()
    assert "unreadable" in page.locator("#pictures li", has_text="c.png").inner_text()
    assert violations(page) == []
    page.get_by_role("button", name="Leave out c.png").click()
    page.get_by_text("1 of 3 pictures cannot be used").wait_for(state="detached")
    page.click("#check")
    page.get_by_text("All 2 pictures can be used.").wait_for()
    page.reload()
    page.get_by_text("All 2 pictures can be used.").wait_for()


def test_closing_the_page_loses_nothing(context: Any, tuned: Live, fake: Callable[..., None]) -> None:  # noqa: F811
    fake("wait")
    page = train_page(context, tuned)
    create(page, "apples", "apples")
    page.get_by_role("textbox", name="Captions of b.png").fill("typed just before closing")
    page.close(run_before_unload=True)
    page = train_page(context, tuned, "apples")
    caption = page.get_by_role("textbox", name="Captions of b.png")
    caption.wait_for()
    assert caption.input_value() == "typed just before closing"
    page.click("#start")
    page.locator("#stop").wait_for()
    page.close()
    page = train_page(context, tuned, "apples")
    page.get_by_text("Step 2 of 4").wait_for()
    page.click("#stop")
    page.locator("#badge", has_text="stopped").wait_for()
    fake("finish")
    page.click("#resume")
    page.locator("#badge", has_text="finished").wait_for()


def test_dropped_text_files_become_captions_of_pictures(context: Any, tuned: Live) -> None:  # noqa: F811
    page = train_page(context, tuned)
    create(page, "mine")
    drop(page, ("cat.png", "image/png", RED), ("cat.txt", "text/plain", b"a cat"), ("bad.png", "image/png", b"no"),
         ("big.png", "image/png", bytes(300_000)))  # fmt: skip
    page.get_by_text("big.png is larger than this server's limit").wait_for()
    assert "bad.png: not a readable image" in page.locator("#pictures-problem").inner_text()
    assert page.locator("#pictures li").count() == 1
    assert page.get_by_role("textbox", name="Captions of cat.png").input_value() == "a cat"
    page.reload()
    page.get_by_role("textbox", name="Captions of cat.png").wait_for()
    assert page.get_by_role("textbox", name="Captions of cat.png").input_value() == "a cat"


def test_errors_are_shown_as_sentences_next_to_their_cause(
    context: Any,
    tuned: Live,  # noqa: F811
    fake: Callable[..., None],  # noqa: F811
) -> None:
    fake("fail")
    page = train_page(context, tuned)
    page.click("#new button")
    assert page.locator("#new-problem").inner_text() == "Enter a name first."
    page.fill("#name", "a b")
    page.click("#new button")
    page.get_by_text("must be 1 to 40 letters").wait_for()
    create(page, "empty")
    page.click("#start")
    page.get_by_text("Add pictures first.").wait_for()
    create(page, "apples", "apples")
    page.fill("#rank", "10000")
    page.click("#start")
    page.locator("#setup-problem", has_text="rank").wait_for()
    page.fill("#rank", "")
    page.click("#start")
    page.get_by_text("the loss is NaN at step 2").wait_for()
    page.click("#delete")
    page.click("#no")
    page.click("#delete")
    page.click("#yes")
    page.locator("#welcome").wait_for()
    page.locator("#list a", has_text="apples").wait_for(state="detached")
    assert page.locator("#list a", has_text="empty").is_visible()


def test_start_waits_until_the_pictures_are_loaded(context: Any, tuned: Live) -> None:  # noqa: F811
    page = train_page(context, tuned)
    create(page, "empty")
    requests: list[Any] = []
    page.route("**/apples/pictures", lambda route: requests.append(route))
    create(page, "apples", "apples")
    page.fill("#rank", "10000")
    page.click("#start")
    assert page.locator("#start").get_attribute("aria-busy") == "true"
    while not requests:
        page.wait_for_timeout(20)
    requests[0].continue_()
    page.locator("#setup-problem", has_text="rank").wait_for()


def test_everything_works_by_keyboard(context: Any, tuned: Live, fake: Callable[..., None]) -> None:  # noqa: F811
    fake("wait")
    page = train_page(context, tuned)
    keys = page.keyboard
    tab_to(page, "#name")
    keys.type("apples")
    tab_to(page, "#folder")
    keys.press("ArrowDown")
    tab_to(page, "#new button")
    keys.press("Enter")
    page.locator("#pictures li").nth(2).wait_for()
    tab_to(page, "[aria-label='Leave out c.png']")
    keys.press("Enter")
    page.locator("#pictures li").nth(2).wait_for(state="detached")
    tab_to(page, "[aria-label^='Captions of a.png']", back=True)
    keys.press("Control+a")
    keys.type("a shiny apple")
    page.get_by_text("Captions saved").wait_for()
    tab_to(page, "#trigger")
    keys.type("sks style")
    tab_to(page, "#start")
    keys.press("Space")
    tab_to(page, "#stop")
    page.get_by_text("Step 2 of 4").wait_for()
    keys.press("Enter")
    page.locator("#badge", has_text="stopped").wait_for()
    fake("finish")
    tab_to(page, "#resume")
    keys.press("Enter")
    page.locator("#badge", has_text="finished").wait_for()
    tab_to(page, "#samples")
    tab_to(page, "#delete", back=True)
    keys.press("Enter")
    tab_to(page, "#no")
    keys.press("Escape")
    assert page.evaluate("document.activeElement.id") == "delete"
    keys.press("Enter")
    tab_to(page, "#yes")
    keys.press("Enter")
    page.locator("#welcome").wait_for()
    assert page.evaluate("document.activeElement.id") == "name"


def test_chinese_by_keyboard_on_a_phone(context: Any, tuned: Live) -> None:  # noqa: F811
    page = train_page(context, tuned)
    page.set_viewport_size(NARROW)
    page.focus("#language")
    page.keyboard.press("Enter")
    page.focus("#name")
    page.keyboard.type("猫")
    page.keyboard.press("Enter")
    page.locator("#title", has_text="猫").wait_for()
    assert page.locator("#start").inner_text() == "开始训练" and page.locator("#badge").inner_text() == "未开始"
    assert violations(page) == []
