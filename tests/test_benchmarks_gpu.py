"""The benchmark of a GPU, without one: its parts on the CPU with small networks, and its limit of time."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, networks, report
from benchmarks.gpu import Part, Sizes
from tests.small import small_unet_config
from tests.test_benchmarks import small_shape


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: torch finds no CUDA device here") and error.count("\n") == 1


def test_small_batches_and_the_most_important_parts_come_first() -> None:
    names = [part.name for part in gpu.parts(Sizes("cpu", batches=(1, 16)))]
    assert names == [
        "pictures, sd15", "training step, sd15", "U-Net, sd15, batch 1", "U-Net, sdxl, batch 1",
        "U-Net, sd15, batch 16", "U-Net, sdxl, batch 16",
    ]  # fmt: skip


def test_contestants_with_torch_compile_can_be_left_out() -> None:
    contestants = [*gpu.PICTURES, *gpu.CALLS]
    assert Sizes("cpu").chosen(contestants) == contestants
    left = Sizes("cpu", compiled=False).chosen(contestants)
    assert 0 < len(left) < len(contestants) and not any("compile" in name for name in left)


def test_a_part_that_fails_or_is_too_late_does_not_affect_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])

    def measured(left: float) -> str:
        now[0] += 50
        return f"{left:.0f} seconds"

    def failed(_: float) -> str:
        raise RuntimeError("CUDA out of memory\nand more")

    written: list[str] = []
    gpu.run([Part("a", measured), Part("b", failed), Part("c", measured), Part("d", measured)], 110, written.append)
    assert len(written) == 4 and all(written[k + 1].startswith(written[k]) for k in range(3))
    assert written[-1].split("\n\n")[1::2] == [
        "110 seconds", "Failed: RuntimeError: CUDA out of memory and more", "60 seconds",
        "Not measured: the 2 minutes had passed.",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_part_runs_on_small_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setitem(gpu.SHAPES, "emoji", small_shape)
    monkeypatch.setitem(networks.SHAPES, "emoji", small_unet_config())
    monkeypatch.setattr(gpu, "PICTURES", ["latentdiff bfloat16", "diffusers bfloat16"])
    monkeypatch.setattr(gpu, "CALLS", [gpu.CALLS[0], "latentdiff bfloat16 plain"])
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu", *["--device", "cpu", "--shapes", "emoji", "--batches", "1", "--steps", "1", "--rounds", "1"]],
    )
    assert gpu.main() == 0
    (file,) = tmp_path.glob("gpu_*.md")
    text = file.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        "pictures, emoji", "training step, emoji", "U-Net, emoji, batch 1",
    ]  # fmt: skip
    assert "Failed" not in text and "Not measured" not in text
    for side in ("latentdiff bfloat16 |", "diffusers bfloat16 |", "latentdiff bfloat16 plain |", "diffusers, cached |"):
        assert side in text
