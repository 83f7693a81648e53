"""Write docs/page-*.webp: the web page of a server that runs the bundled model, in headless Chromium.

Chinese requires a font such as Noto Sans CJK. Run it again after changes of the page; it takes some minutes:
python -m scripts.page_screenshots
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
from PIL import Image, ImageOps
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
SUBJECTS = (
    "apple",
    "cat face",
    "banana",
    "car",
    "dog face",
    "rocket",
    "tree",
    "house",
    "fish",
    "flower",
    "cup",
    "bird",
)
STYLES = ("fluent 3d style", "noto style")
STYLE = "blueprint style"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server that offers fine-tuning on `folder`/pictures."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "latentdiff", "serve", f"--port={port}"]
    (folder / "pictures").mkdir(parents=True)
    places = [f"--train={folder / 'pictures'}", f"--runs={folder / 'runs'}"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*command, *places], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not _ready(url):
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def blueprints(url: str, folder: Path) -> None:
    """Captioned pictures of one style to train on, from the bundled model."""
    folder.mkdir()
    for subject in SUBJECTS:
        body = {"prompt": f"{article(subject)} {subject}, {STYLES[0]}", "seed": 3, "steps": 15}
        job = httpx.post(f"{url}/jobs", json=body).json()["id"]
        while httpx.get(f"{url}/jobs/{job}").json()["status"] != "finished":
            time.sleep(0.1)
        grey = Image.open(io.BytesIO(httpx.get(f"{url}/jobs/{job}/images/0").content)).convert("L")
        name = subject.replace(" ", "-")
        ImageOps.colorize(grey, "#123a8c", "#eef4ff").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{article(subject)} {subject}, {STYLE}", "utf-8")


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def generate(page: Any, prompt: str, images: int = 1, steps: int = 20) -> None:
    page.fill("#prompt", prompt)
    page.fill("#images", str(images))
    page.fill("#steps", str(steps))
    page.click("#generate")


def fill_gallery(page: Any) -> None:
    for k, subject in enumerate(SUBJECTS):
        generate(page, f"{article(subject)} {subject}, {STYLES[k % 2]}")
    page.locator("#gallery li").nth(len(SUBJECTS) - 1).wait_for()


def shoot(page: Any, name: str) -> None:
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(DOCS / f"page-{name}.webp", quality=90, method=6)


def shoot_generating(page: Any, url: str) -> None:
    page.goto(url)
    page.locator("#generate:enabled").wait_for()
    fill_gallery(page)
    generate(page, "a slice of (pizza:1.2), fluent 3d style", images=4, steps=60)
    page.locator("#queue .preview[src^='data:image/png']").nth(3).wait_for()
    while page.locator("#queue progress").evaluate("bar => bar.value") < 0.5:
        page.wait_for_timeout(50)
    shoot(page, "generate")
    page.locator("#queue li").wait_for(state="detached")


def shoot_painting(page: Any) -> None:
    page.click("#theme")
    page.locator("#gallery .open").nth(14).click()
    page.get_by_role("button", name="Use as input").click()
    page.click("#paint")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.35)
    page.mouse.down()
    for x, y in ((0.5, 0.3), (0.7, 0.4), (0.6, 0.5), (0.4, 0.5)):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=5)
    page.mouse.up()
    shoot(page, "mask")
    page.click("#done")
    page.click("#theme")


def shoot_training(page: Any, url: str) -> None:
    page.goto(f"{url}/train")
    page.select_option("#folder", "blueprints")
    page.fill("#name", "blueprint")
    page.click("#new button")
    page.locator("#pictures li").nth(len(SUBJECTS) - 1).wait_for()
    page.fill("#steps", "160")
    page.click("#start")
    page.locator("#badge.finished").wait_for(timeout=900_000)
    page.locator("#samples img[src^=blob]").first.wait_for()
    shoot(page, "train")
    page.click("#use")
    page.locator("#generate:enabled").wait_for()


def shoot_phone(page: Any) -> None:
    page.click("#language")
    page.set_viewport_size(PHONE)
    page.click("#theme")
    page.evaluate("scrollTo(0, 0)")
    page.fill("#prompt", "一只猫的脸, fluent 3d style")
    shoot(page, "phone")


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    os.environ.pop("LATENTDIFF_KEY", None)
    try:
        with server(folder) as url, sync_playwright() as playwright:
            blueprints(url, folder / "pictures" / "blueprints")
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_context(viewport=WIDE, locale="en-GB").new_page()
            page.set_default_timeout(120_000)
            shoot_generating(page, url)
            shoot_painting(page)
            shoot_training(page, url)
            shoot_phone(page)
            browser.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
