"""The rows of each batch: distinct pictures, fair shares, and independence of how a batch is split."""

import random
from collections import Counter
from itertools import chain, pairwise
from typing import Any

import pytest

from latentdiff.data.batch_sampler import Batches
from latentdiff.data.bucket_order import BucketOrder
from latentdiff.data.bucket_plan import Counts, chunk_size, join_buckets
from latentdiff.data.buckets import Fitting, lost_area

Items = list[tuple[int, int]]


def take(batches: Batches, count: int) -> list[Items]:
    stream = iter(batches)
    return [next(stream) for _ in range(count)]


def steps(buckets: list[int], batch: int, count: int, **options: Any) -> list[Items]:
    """The items of the first optimiser steps of one process."""
    batches = Batches(buckets, batch, seed=1, **options)
    parts = take(batches, count * batches.passes)
    return [list(chain(*parts[k : k + batches.passes])) for k in range(0, len(parts), batches.passes)]


def mixed_sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Sizes of photographs and screenshots, upright and across, a few of them panoramas."""
    rng = random.Random(seed)
    ratios = [rng.choice((1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.2, rng.uniform(1, 3.5))) for _ in range(count)]
    long = [(round(1000 * ratio), 1000) for ratio in ratios]
    return [size if rng.random() < 0.6 else size[::-1] for size in long]


def plan(sizes: list[tuple[int, int]], batch: int, fitting: Fitting | None = None) -> list[int]:
    """The bucket of each picture."""
    joined = join_buckets(sizes, [1] * len(sizes), fitting or Fitting(512), batch)
    places = sorted(set(joined.values()))
    return [places.index(joined[size]) for size in sizes]


@pytest.mark.parametrize("batch", [1, 2, 4, 12, 16, 32, 64, 128])
@pytest.mark.parametrize("count", [1, 7, 40, 150])
def test_every_batch_of_a_mixed_folder_has_distinct_pictures(count: int, batch: int) -> None:
    buckets = plan(mixed_sizes(count, seed=count), batch)
    for items in steps(buckets, batch, 25):
        assert len({row for row, _ in items}) == min(batch, count)


@pytest.mark.parametrize("batch", [8, 16])
def test_each_micro_batch_is_of_one_bucket_and_a_step_of_several(batch: int) -> None:
    sizes = mixed_sizes(400)
    buckets = plan(sizes, batch * 8)
    parts = [Batches(buckets, batch, seed=1, rank=rank, world=8) for rank in range(8)]
    for micro in (micro for part in parts for micro in take(part, 20)):
        assert len({buckets[row] for row, _ in micro}) == 1
    first = [row for part in parts for micro in take(part, part.passes) for row, _ in micro]
    assert len(set(first)) == 8 * batch and len({buckets[row] for row in first}) >= 4
    assert parts[0].micro_batch >= 4


SPLITS = [(1, 2), (3, 1), (3, 2), (1, 3), (12, 1), (2, 6)]


@pytest.mark.parametrize("count", [5, 11, 40, 200])
@pytest.mark.parametrize(("accumulation", "world"), SPLITS)
def test_a_global_batch_draws_the_same_rows_however_it_is_split(count: int, accumulation: int, world: int) -> None:
    buckets = plan(mixed_sizes(count), 12)
    one = steps(buckets, 12, 8)
    size = 12 // (accumulation * world)
    parts = [Batches(buckets, size, seed=1, accumulation=accumulation, rank=rank, world=world) for rank in range(world)]
    taken = [take(part, 8 * part.passes) for part in parts]
    together = [item for micro in zip(*taken, strict=True) for batch in micro for item in batch]
    assert together == [item for items in one for item in items]
    assert {len(batch) for micros in taken for batch in micros} == {parts[0].micro_batch}


def test_training_can_start_at_any_step() -> None:
    for buckets in ([0] * 7, [0, 1, 0, 2, 0, 0, 1]):
        whole = take(Batches(buckets, 3, seed=2, accumulation=2), 18)
        passes = Batches(buckets, 3, seed=2, accumulation=2).passes
        assert take(Batches(buckets, 3, seed=2, accumulation=2, start=1), 8) == whole[passes : passes + 8]


def test_an_epoch_contains_every_picture_once_in_a_new_order() -> None:
    items = [item for items in steps([0] * 10, 5, 4) for item in items]
    rows = [row for row, _ in items]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert [draw for _, draw in items] == list(range(20))


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_all_pictures_of_a_mixed_folder_occur_equally_often(batch: int) -> None:
    buckets = plan(mixed_sizes(60), batch)
    seen = Counter(row for items in steps(buckets, batch, 600) for row, _ in items)
    assert len(seen) == 60
    assert max(seen.values()) - min(seen.values()) <= 0.02 * batch * 600 / 60 + 3


def test_repeats_occur_as_often_as_requested_and_are_spread_over_the_epoch() -> None:
    pictures = [0] * 10 + [1] * 10 + list(range(2, 22))  # two pictures of ten rows each, twenty of one
    seen = [row for items in steps([0] * 40, 4, 100, pictures=pictures) for row, _ in items]
    shown = Counter(pictures[row] for row in seen)
    assert shown[0] == shown[1] == 100 and {shown[k] for k in range(2, 22)} == {10}
    assert {row: seen.count(row) for row in range(20)} == dict.fromkeys(range(20), 10)
    places = [k for k, row in enumerate(seen) if pictures[row] == 0]
    assert max(later - earlier for earlier, later in pairwise(places)) <= 12


@pytest.mark.parametrize("count", [1, 2, 5, 16, 31, 100])
@pytest.mark.parametrize("window", [1, 4, 16, 31, 60])
def test_a_picture_returns_after_the_window_and_every_round_differs(count: int, window: int) -> None:
    window = min(window, count)
    order = BucketOrder(range(count), range(count), (3, 0), window)
    draws = [order[k] for k in range(8 * count)]
    for start in range(len(draws) - window + 1):
        assert len(set(draws[start : start + window])) == window
    assert Counter(draws) == dict.fromkeys(range(count), 8)
    if window < count - 3:
        assert len({tuple(draws[k : k + count]) for k in range(0, len(draws), count)}) == 8
    assert [BucketOrder(range(count), range(count), (3, 0), window)[k] for k in range(count)] == draws[:count]


def test_small_buckets_join_the_nearest_one_and_few_pictures_are_cropped_much() -> None:
    sizes = [(1000, 1000)] * 60 + [(1300, 1000)] * 30 + [(3000, 1000)]
    joined = join_buckets(sizes, [1] * len(sizes), Fitting(512), 16)
    assert joined == {(1000, 1000): (512, 512), (1300, 1000): (576, 448), (3000, 1000): (576, 448)}
    half = [(1000, 1000), (2000, 1000)] * 3
    assert len(set(join_buckets(half, [1] * 6, Fitting(512), 4).values())) == 2  # joining would crop a quarter
    assert chunk_size({0: Counts(3, 3), 1: Counts(3, 3)}, 4) == 2


@pytest.mark.parametrize(("resolution", "multiple"), [(1024, 8), (768, 8), (512, 8), (512, 64), (256, 8), (128, 8)])
def test_there_are_about_twenty_buckets_and_no_picture_loses_over_a_tenth(resolution: int, multiple: int) -> None:
    fitting = Fitting(resolution, multiple)
    step = min(64, resolution // 8)
    assert 9 <= len(fitting.sizes) <= 20 and len(set(fitting.sizes)) == len(fitting.sizes)
    assert all(w % step == h % step == 0 and (h, w) in fitting.sizes for w, h in fitting.sizes)
    assert all(0.75 <= w * h / resolution**2 <= 1.05 for w, h in fitting.sizes)
    worst = max(lost_area((w, 1000), fitting.bucket((w, 1000))) for w in range(250, 4001, 10))
    assert worst < 0.1 and fitting.problem((resolution, resolution - 1)) is None


def test_small_enlargements_are_allowed_up_to_the_limit() -> None:
    for size, limit, kind in (((512, 511), 1.05, None), ((480, 480), 1.05, "too small"), ((480, 480), 1.07, None)):
        found = Fitting(512, allow_upscale=limit).problem(size)
        assert (found and found[0]) == kind


def test_a_picture_that_is_too_small_is_told_the_factor_that_would_allow_it() -> None:
    kind, detail = Fitting(512).problem((480, 480)) or ("", "")
    assert kind == "too small" and detail.startswith(
        "480x480 would be enlarged 1.07 times to 512x512, more than 1.05; "
    )
    assert detail.endswith("--allow-upscale 1.07") and Fitting(512, allow_upscale=1.07).problem((480, 480)) is None
    kind, detail = Fitting(512).problem((400, 400)) or ("", "")
    assert Fitting(512, allow_upscale=float(detail.split()[-1])).problem((400, 400)) is None


def test_a_picture_that_just_covers_a_bucket_is_not_enlarged_to_another() -> None:
    assert lost_area((640, 384), (704, 384)) < lost_area((640, 384), (576, 384))
    fitting = Fitting(512)
    assert fitting.bucket((640, 384)) == (576, 384) and fitting.problem((640, 384)) is None
    assert fitting.bucket((1280, 768)) == (704, 384)
    joined = join_buckets([(576, 448)] * 30 + [(640, 384)], [1] * 31, fitting, 4)
    assert set(joined.values()) == {(576, 448)}
