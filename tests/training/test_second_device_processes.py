"""Two processes, each with a second device, give the run of one process on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.second_device.device import build
from tests.training.small_runs import Make, losses, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="the second device is compiled"),
]
ROOT = Path(__file__).parents[2]


def test_two_devices_give_the_run_of_one_process(unet_config: Make, tmp_path: Path) -> None:
    whole, halves = (unet_config(tmp_path / name, max_steps=4) for name in ("whole", "halves"))
    halves["data"]["batch_size"] = whole["data"]["batch_size"] // 2
    (tmp_path / "config.json").write_text(json.dumps(halves, default=str))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.second_device.processes", str(build(tmp_path)), str(tmp_path / "config.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()]
    assert losses(lines) == pytest.approx(losses(run(whole)), rel=1e-4)
    assert not any("failures" in line for line in lines)
