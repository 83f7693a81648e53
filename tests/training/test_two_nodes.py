"""The commands for two nodes in docs/train.md, run as two launchers on this machine, give the run of one process."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training.small_runs import Make, losses, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
COMMANDS = [line for line in PAGE.splitlines() if "--nnodes 2" in line or "--num_machines 2" in line]
LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def of_small_nodes(command: str, port: int, config: Path) -> list[str]:
    """A command of the page with one process per node, both on this machine and without GPUs."""
    for theirs, here in (
        ("node0", "localhost"), ("29500", str(port)), ("--nproc-per-node 8", "--nproc-per-node 1"),
        ("--num_processes 16", "--num_processes 2"), ("ddp.yaml", "cpu.yaml"), ("configs/emoji/unet.yaml", str(config)),
    ):  # fmt: skip
        command = command.replace(theirs, here)
    launcher, *words = shlex.split(command)
    return [sys.executable, "-m", LAUNCHERS[launcher], *words]


def test_the_page_has_both_launchers() -> None:
    assert [command.split()[0] for command in COMMANDS] == ["torchrun", "torchrun", "accelerate", "accelerate"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", [COMMANDS[:2], COMMANDS[2:]], ids=["torchrun", "accelerate"])
def test_two_nodes_give_the_run_of_one(pair: list[str], unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "nodes", max_steps=3)
    config["data"]["batch_size"] = 4
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(config))
    port, environment = free_port(), os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    nodes = [
        subprocess.Popen(
            of_small_nodes(command, port, tmp_path / "nodes.yaml"), cwd=ROOT, env=environment, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True,
        )
        for command in pair
    ]  # fmt: skip
    said = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    lines = [json.loads(line) for line in (tmp_path / "nodes" / "metrics.jsonl").read_text().splitlines()]
    assert losses(lines) == pytest.approx(losses(run(unet_config(tmp_path / "one", max_steps=3))), rel=1e-5)
