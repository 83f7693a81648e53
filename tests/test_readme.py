"""The code blocks in README.md and docs/ run; the commands and links in them exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from latentdiff.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "weights" / "emoji" / "README.md"]


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(f"{page.name}-{k}", code) for page in PAGES for k, code in enumerate(pattern.findall(page.read_text()))]


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in blocks("python")])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def latentdiff_lines() -> list[str]:
    lines = [line for _, code in blocks("bash") for line in code.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("latentdiff ")]


@pytest.mark.parametrize("line", latentdiff_lines())
def test_shell_lines_use_verbs_and_options_that_exist(line: str) -> None:
    verb, *words = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, words, resilient_parsing=False)
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()


def test_the_quick_start_contains_the_two_tested_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert 'pip install -c constraints.txt . && latentdiff generate "a red apple" -o apple.png' in readme
    assert 'pip install -c constraints.txt ".[test]" && pytest' in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_are_valid(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
