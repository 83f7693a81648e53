"""Browser actions for the tests of the web pages."""

import io
import shutil
from typing import Any

from PIL import Image

from tests.serving.live import Live

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NARROW = {"width": 390, "height": 844}


def opened(context: Any, live: Live) -> Any:
    """The page at `/`, once the server's models are known."""
    page = context.new_page()
    page.goto(live.url)
    page.locator("#generate:enabled").wait_for()
    return page


def generate(page: Any, prompt: str = "a red apple", steps: int = 3) -> None:
    page.fill("#prompt", prompt)
    page.fill("#steps", str(steps))
    page.click("#generate")


def tab_to(page: Any, selector: str, back: bool = False) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(80):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def drop(page: Any, *files: tuple[str, str, bytes]) -> None:
    """Drop files on the page: name, MIME type and bytes of each."""
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, bytes] of files)
                transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
            return transfer;
        }""",
        [[name, kind, list(data)] for name, kind, data in files],
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def violations(page: Any) -> list[str]:
    """The violations that axe reports, and whether the page is wider than the window."""
    from axe_playwright_python.sync_playwright import Axe

    found = [
        f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}"
        for one in Axe().run(page).response["violations"]
    ]
    if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        found.append("the page is wider than the window")
    return found
