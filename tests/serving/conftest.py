"""An engine over the small random model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.serving.engine import Engine
from latentdiff.serving.job import ImageRequest
from latentdiff.serving.limits import Limits
from latentdiff.serving.models import LoraSpec, ModelSpec, ModelStore
from latentdiff.serving.server_state import Server, Settings
from latentdiff.serving.upscalers import UpscalerStore
from tests.checkpoints.test_lora import trained
from tests.serving.browsing import CHROMIUM
from tests.serving.live import Live

OPTIONS = {"device": "cpu", "dtype": "float32"}


def request(**changes: Any) -> ImageRequest:
    values: dict[str, Any] = {
        "model": "small",
        "prompt": "a red apple",
        "seed": 1,
        "height": 16,
        "width": 16,
        "steps": 3,
        "guidance_scale": 4.0,
        "sampler": "ddim",
    }
    values |= changes
    return ImageRequest(**values, size=(values["width"], values["height"]))


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(model_folder: Path) -> Iterator[MakeEngine]:
    """Engines that are closed after the test. start=False: jobs wait until the test starts it."""
    made: list[Engine] = []

    def make(
        models: dict[str, Path] | None = None,
        loras: list[LoraSpec] | None = None,
        limit: int | None = None,
        start: bool = True,
        limits: Limits | None = None,
        exact_batch: int | None = None,
        upscalers: UpscalerStore | None = None,
        embeddings: Sequence[Path] = (),
        checker: Any = None,
    ) -> Engine:
        paths = models or {"small": model_folder}
        store = ModelStore(
            [ModelSpec(name, str(path), OPTIONS) for name, path in paths.items()], loras, limit, embeddings
        )
        engine = Engine(store, limits, exact_batch, upscalers=upscalers, checker=checker)
        made.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in made:
        engine.close()


MakeLive = Callable[..., Live]


@pytest.fixture
def make_live(make_engine: MakeEngine) -> Iterator[MakeLive]:
    """Servers on free ports. settings: fields of `Settings`; other arguments are those of `make_engine`."""
    made: list[Live] = []

    def make(settings: Settings | None = None, port: int = 0, **engine: Any) -> Live:
        server = Server(make_engine(start=False, **engine), settings or Settings())
        made.append(Live(server, port))
        return made[-1]

    yield make
    for live in made:
        live.close()


@pytest.fixture(scope="session")
def live(model_folder: Path) -> Iterator[Live]:
    """One server, shared by the tests that do not change it."""
    running = Live(Server(Engine(ModelStore([ModelSpec("small", str(model_folder), OPTIONS)]))))
    yield running
    running.close()


@pytest.fixture(scope="session")
def lora_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes the small model's images visibly."""
    folder = tmp_path_factory.mktemp("lora")
    parts = trained(model_folder)
    save_lora(parts, folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser with an empty profile; the page's content security policy is disabled, so that axe can be added."""
    made = browser.new_context(viewport={"width": 1400, "height": 900}, bypass_csp=True, locale="en-GB")
    made.set_default_timeout(20_000)
    yield made
    made.close()
