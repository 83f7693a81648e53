"""With sockets blocked, every feature that reads local files works, and a hub id is one line."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latentdiff import cli
from tests.checkpoints.small_families import UNETS


class NetworkUsedError(AssertionError):
    """A socket was opened."""


@pytest.fixture(autouse=True)
def _no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NetworkUsedError

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", *map(str, words)])
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def inputs_of(family: str, picture: Path) -> list[object]:
    """The inputs of a family besides the prompt."""
    if family.endswith("inpainting"):
        return ["--image", picture, "--mask", picture]
    return ["--image", picture] if family.endswith("pix2pix") else []


@pytest.mark.parametrize("family", UNETS)
def test_folders_and_files_of_every_family(
    family: str, files: Callable[[str], Path], picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files(family)
    size = ["--steps", 1, "--height", 64, "--width", 64, "--optimize", "off"]
    for model in (file, file.with_suffix("")):
        assert run(monkeypatch, "info", model) == 0
        made = tmp_path / f"x{model.suffix}.png"
        words = ["generate", "a cat", "-o", made, "--model", model, *size, *inputs_of(family, picture)]
        assert run(monkeypatch, *words) == 0 and made.exists()


def test_additions_conversion_and_recipes(
    files: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, width = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 64
    pair = {"lora_A.weight": torch.randn(2, width), "lora_B.weight": torch.randn(width, 2)}
    save_file({f"unet.{layer}.{name}": value for name, value in pair.items()}, tmp_path / "style.safetensors")
    save_file({"<toy>": torch.randn(2, 64)}, tmp_path / "toy.safetensors")
    model, made = files("sd1"), tmp_path / "x.png"
    for name in ("style", "toy"):
        assert run(monkeypatch, "info", tmp_path / f"{name}.safetensors") == 0
    additions = ["--lora", f"{tmp_path / 'style.safetensors'}:0.5", "--embedding", tmp_path / "toy.safetensors"]
    additions += ["--vae", files("xl").with_suffix(""), "--unet", model]
    size = ["--steps", 1, "--height", 64, "--width", 64, "--optimize", "off"]
    assert run(monkeypatch, "generate", "a <toy>", "-o", made, "--model", model, *size, *additions) == 0
    assert run(monkeypatch, "info", made) == 0
    assert run(monkeypatch, "generate", "--recipe", made, "-o", tmp_path / "again.png") == 0
    assert run(monkeypatch, "convert", model, tmp_path / "folder", "--dtype", "float16") == 0
    refined = ["--refiner", files("xl-refiner"), "--prompt-2", "a dog", "-o", tmp_path / "refined.png"]
    steps = [2 if word == 1 else word for word in size]
    assert run(monkeypatch, "generate", "a cat", "--model", files("xl"), *steps, *refined) == 0


def test_a_hub_id_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> Any:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "info", "no-such-owner/no-such-model") == 2
    error = capsys.readouterr().err
    assert "no-such-owner/no-such-model is neither a local folder nor an accessible Hugging Face" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["missing/model.safetensors", "./missing", "weights/missing/model"])
def test_a_missing_path_is_not_searched_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "info", name) == 2
    error = capsys.readouterr().err
    assert f"{name} does not exist" in error and error.count("\n") == 1
