"""Small random models for all test files."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the processor; before torch is imported

import pytest
import torch
from hypothesis import settings

from latentdiff.checkpoints.components import write_pipeline
from tests.small import small_components

settings.register_profile("repeatable", derandomize=True)
if "LATENTDIFF_MUTATIONS" not in os.environ:  # with it, files are changed in other ways in every run
    settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text-to-image model of a few hundred kilobytes, saved as a pipeline folder."""
    folder = tmp_path_factory.mktemp("models") / "small"
    write_pipeline(small_components(), folder)
    return folder


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with SDXL's two text encoders and size conditioning."""
    folder = tmp_path_factory.mktemp("models") / "small-xl"
    write_pipeline(small_components(xl=True), folder)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the variants of the CPU kernels that were not tested, if any kernels were."""
    from tests.runtime.variants import TESTABLE, untestable

    if any(report.nodeid.startswith("tests/runtime/") for report in terminalreporter.stats.get("passed", [])):
        tested = ", ".join(TESTABLE) or "none"
        others = ", ".join(f"{name} ({why})" for name, why in untestable().items())
        terminalreporter.write_line(f"CPU kernels tested: {tested}; not tested on this machine: {others or 'none'}")
