"""Branches on "cuda", run without a GPU on fake tensors, which refuse operands of two devices."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.second_device.device import SOURCE, build

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("c++") is None, reason="a device guard is compiled")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    guard = build(tmp_path_factory.mktemp("guard"), SOURCE.with_name("guard.cpp"))
    command = [sys.executable, "-m", "tests.second_device.fake_cuda", str(guard)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("mixed_operands", "FakeTensorDeviceMismatchError"),
        ("text", "cuda:0 cuda:0"),
        ("vae", "cuda:0 cuda:0"),
        ("waiting", "1 of 2"),
        ("sampling", "cuda:0, 0 copies wait"),
        ("training_step", "cuda:0 cuda:0 cuda:0 pinned [[3, 4, 8, 8], [2, 3], [3, 8], [3, 16, 32]]"),
        ("compiling", "max-autotune True copied 1"),
    ],
)
def test_everything_stays_on_the_gpu(check: str, expected: str, found: dict[str, str]) -> None:
    assert found[check] == expected
