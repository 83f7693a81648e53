"""The table and the plots of seconds and memory against batch, size, steps and threads."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.contest import Contest
from benchmarks.pipeline import Picture
from benchmarks.scale import Point, _point, measure_axis, plot, tabulate, threads
from benchmarks.turns import Turn

POINTS = [
    Point("batch", 1, "latentdiff", 0.5, 1.0),
    Point("batch", 1, "diffusers", 1.0, 2.0),
    Point("batch", 8, "latentdiff", 0.25, 1.5),
    Point("batch", 8, "diffusers", note="no response in 300 s; excluded"),
]


def test_a_point_has_the_seconds_of_one_picture_and_the_largest_peak() -> None:
    contest = Contest(
        {"latentdiff float32": [Turn([4.0, 8.0], 2**30), Turn([6.0], 2**31)]}, {"diffusers float32": "no"}
    )
    assert _point(contest, "batch", 4, "latentdiff", "latentdiff float32", 4) == Point("batch", 4, "latentdiff", 1.5, 2)
    assert _point(contest, "batch", 4, "diffusers", "diffusers float32", 4) == Point("batch", 4, "diffusers", note="no")


def test_a_row_has_both_sides_their_ratio_and_the_reason_of_a_missing_one() -> None:
    *_, first, second = tabulate(POINTS).splitlines()
    assert first == "| 1 pictures | 0.5 | 1 | 0.50 | 1.00 | 2.00 |"
    assert second == "| 8 pictures | 0.25 | no response in 300 s; excluded |  | 1.50 |  |"


def test_a_plot_is_a_file_with_a_curve_for_each_side_that_has_results() -> None:
    svg = ElementTree.fromstring(plot(POINTS, "batch", "seconds"))
    assert svg.get("aria-label") == "s a picture, over pictures"
    circles = [node.get("fill") for node in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert circles == ["#2563eb", "#2563eb", "#dc2626"]
    assert not plot(POINTS, "size", "gib") and not plot(POINTS[:2], "batch", "gib")


def test_threads_double_up_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for most in (1, 2, 6, 8):
        monkeypatch.setattr("torch.get_num_threads", lambda most=most: most)
        found[most] = threads()
    assert found == {1: (1,), 2: (1, 2), 6: (1, 2, 4, 6), 8: (1, 2, 4, 8)}


@pytest.mark.slow
def test_both_sides_are_measured_along_an_axis(model_folder: Path) -> None:
    points = measure_axis(Picture(folder=model_folder, steps=1), "batch", [1, 2], "float32", 1, 300)
    assert [(point.value, point.side) for point in points] == [
        (1, "latentdiff"), (1, "diffusers"), (2, "latentdiff"), (2, "diffusers"),
    ]  # fmt: skip
    assert all(point.seconds > 0 and point.gib > 0 and not point.note for point in points)
