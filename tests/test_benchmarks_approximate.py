"""Errors and tables of `benchmarks.approximate`."""

from pathlib import Path

import pytest
import torch

from benchmarks.approximate import EXACT, Inputs, Maker, Setting, compare_pictures, relative_error


def test_errors_are_relative_to_the_exact_result() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert relative_error(exact + torch.tensor([0.3, 0.4]), exact) == pytest.approx(0.1)


def test_settings_are_named_by_their_effect() -> None:
    settings = Setting(()), Setting(("reuse", "int8"), 3), Setting((), steps=7)
    assert [str(setting) for setting in settings] == [EXACT, "reuse, every 3 + int8", "exact, 7 steps"]


def test_each_setting_generates_pictures_from_the_same_seeds(model_folder: Path) -> None:
    inputs = Inputs(model_folder, "cpu", 4, ["a red apple", "a cat face"])
    (exact, pixels), (every, same), (near, _) = (
        Maker(inputs, setting).all() for setting in (Setting(()), Setting(("reuse",), 1), Setting(("reuse",), 2))
    )
    assert pixels.dtype == torch.uint8 and len(pixels) == len(exact) == 2
    assert torch.equal(every, exact) and torch.equal(same, pixels) and not torch.equal(near, exact)


@pytest.mark.slow
def test_the_table_has_a_row_for_each_setting(model_folder: Path) -> None:
    inputs = Inputs(model_folder, "cpu", 2, ["a red apple", "a cat face", "a rocket"])
    lines = compare_pictures(inputs, [Setting(()), Setting(("reuse",), 2)], rounds=1, real=None).splitlines()
    assert (
        len(lines) == 4 and lines[2].startswith(f"| {EXACT} | ") and lines[2].endswith("| 0.000 | 0.000 | inf | 0.00 |")
    )
