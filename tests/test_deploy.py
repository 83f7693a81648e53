"""The files in deploy/: their syntax, and that the commands in them exist. Containers are not run."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from latentdiff.cli.app import app

DEPLOY = Path(__file__).parents[1] / "deploy"


def check_serve(words: list[str]) -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    command.make_context("serve", words, resilient_parsing=False)


def test_the_container_starts_a_server() -> None:
    entry = re.search(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert entry
    program, verb, *words = json.loads(entry[1])
    assert (program, verb) == ("latentdiff", "serve")
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["latentdiff"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert "LATENTDIFF_KEY" in service["environment"]  # required to listen on 0.0.0.0
    check_serve([*words, *service["command"]])


def test_the_unit_starts_a_server_and_waits_for_it_to_drain() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(DEPLOY / "latentdiff.service")
    program, verb, *words = unit["Service"]["ExecStart"].split()
    assert program.endswith("/latentdiff") and verb == "serve"
    check_serve(words)
    from latentdiff.serving.app import DRAIN_SECONDS
    from latentdiff.serving.process import COLLECT_SECONDS

    assert unit["Service"].getint("TimeoutStopSec") > DRAIN_SECONDS + COLLECT_SECONDS


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "latentdiff.service"
    unit.write_text((DEPLOY / unit.name).read_text().replace("/opt/latentdiff/bin/latentdiff", "/bin/true"))
    found = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and unit.name not in found.stderr, found.stderr


def test_the_proxy_waits_longer_than_the_deadline() -> None:
    from latentdiff.serving.limits import Limits

    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    assert text.count("{") == text.count("}") == 4
    timeout = re.search(r"proxy_read_timeout (\d+)s;", text)
    assert timeout and int(timeout[1]) > Limits().deadline and f"client_max_body_size {Limits().body >> 20}m" in text
