"""The benchmark of prompt following: parts, requests and scores."""

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from examples.emoji.combinations import colour_part, number_part, pair_part, position_part
from examples.emoji.composites import composite
from examples.emoji.follow import Hits, draw_requests, score, shuffled
from examples.emoji.follow_page import write_markdown
from examples.emoji.follow_requests import COUNTS, LANGUAGES, Request, make_requests, part_of_request
from examples.emoji.layout import compose
from examples.emoji.part_classifier import Seen, is_held_out_drawing, teach_classifier
from examples.emoji.parts import CROP, find_parts
from examples.emoji.split import CORE
from examples.emoji.sprites import Sprite
from examples.emoji.vocabulary import Word, read_vocabulary
from latentdiff.errors import InputError
from latentdiff.metrics.features import FeatureNetwork
from tests.emoji_corpus import row, shape

GROUPS = ("smileys", "people", "animals", "food", "travel", "activities", "objects")


def sprite(concept: str, style: str, number: int, **more: Any) -> Sprite:
    rgba = np.array(shape(number).resize((48, 48)))[5:43, 5:43]
    return Sprite(row(concept, style, number, **{"single": True} | more), rgba, Path(__file__))


def word(concept: str, number: int = 0, group: str = "objects") -> Word:
    return Word(concept, concept, group, tuple(sprite(concept, style, number) for style in CORE))


@pytest.fixture(scope="module")
def words() -> list[Word]:
    return [word(f"thing {'abcdefghijklmnopqrst'[k]}", k, GROUPS[k % 7]) for k in range(20)]


@pytest.fixture(scope="module")
def requests(words: list[Word]) -> list[Request]:
    return make_requests(words, "test")


CAT, CAR = word("cat"), word("bus")
ONE, BOTH = ((CAT,), (None,)), ((CAT, CAR), (None, None))
BLUE, RED_BLUE = ((CAT,), ("blue",)), ((CAT, CAR), ("red", "blue"))


def seen(concept: str, colour: str = "red", x: float = 0.5, y: float = 0.5) -> Seen:
    return Seen(concept, colour, (x, y))


def test_parts_are_found_with_their_colours_and_places() -> None:
    things = [(np.array(shape(0)), (4.0, 6.0, 50.0)), (np.array(shape(4)), (70.0, 70.0, 54.0))]
    for background in ("white", "green", "black"):
        large, small = find_parts(np.array(compose(things, background)))
        assert (large.colour, small.colour) == ("blue", "red")
        assert large.centre[0] > 0.6 and large.centre[1] > 0.6 and small.centre[0] < 0.4
        assert small.crop.shape == (CROP, CROP, 3) and (small.crop[0] == 255).all()


def test_small_gaps_do_not_split_parts_and_specks_are_ignored() -> None:
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[40:80, 20:50] = picture[40:80, 54:90] = 0
    picture[5:9, 100:104] = 0
    assert len(find_parts(picture)) == 1
    picture[:, 45:60] = 255
    assert len(find_parts(picture)) == 2
    assert find_parts(np.full((128, 128, 3), 90, np.uint8)) == []


@pytest.mark.parametrize(
    ("request_", "parts", "met"),
    [
        (Request("single object", *ONE), [seen("cat")], True),
        (Request("single object", *ONE), [seen("bus")], False),
        (Request("two objects", *BOTH), [seen("bus"), seen("cat")], True),
        (Request("two objects", *BOTH), [seen("cat"), seen("cat")], False),
        (Request("counting", *ONE, 2), [seen("cat"), seen("cat")], True),
        (Request("counting", *ONE, 2), [seen("cat")] * 3, False),
        (Request("colours", *BLUE), [seen("cat", "blue")], True),
        (Request("colours", *BLUE), [seen("cat", "red"), seen("bus", "blue")], False),
        (Request("position", *BOTH, relation="left of"), [seen("cat", x=0.2), seen("bus", x=0.8)], True),
        (Request("position", *BOTH, relation="left of"), [seen("cat", x=0.8), seen("bus", x=0.2)], False),
        (Request("position", *BOTH, relation="above"), [seen("cat", y=0.5), seen("bus", y=0.55)], False),
        (Request("position", *BOTH, relation="below"), [seen("cat", y=0.9), seen("bus", y=0.3)], True),
        (Request("colour attribution", *RED_BLUE), [seen("cat", "red"), seen("bus", "blue")], True),
        (Request("colour attribution", *RED_BLUE), [seen("cat", "blue"), seen("bus", "red")], False),
    ],
)
def test_object_and_attribute_must_both_be_right(request_: Request, parts: list[Seen], met: bool) -> None:
    assert request_.is_met(parts) is met


def test_prompts_express_the_request_in_both_languages() -> None:
    assert Request("counting", (CAT,), (None,), 3).text("English") == "three cats"
    assert (
        Request("position", (CAT, CAR), (None, None), relation="left of").text("English")
        == "a cat to the left of a bus"
    )
    attributes = Request("colour attribution", (CAT, CAR), ("white", "blue"))
    assert attributes.text("English") == "a white cat and a blue bus on a green background"
    assert attributes.text("Chinese") == "一个白色的cat和一个蓝色的bus，绿色背景"


def test_requests_belong_to_their_part_and_are_always_the_same(words: list[Word], requests: list[Request]) -> None:
    assert requests == make_requests(words, "test")
    others = make_requests(words, "validation")
    assert not {r.text("English") for r in requests} & {r.text("English") for r in others}
    for request in requests:
        names = [w.concept for w in request.words]
        match request.task:
            case "counting":
                assert number_part(names[0], request.number) == "test"
            case "colours":
                assert colour_part(names[0], request.colours[0] or "") == "test"
            case "two objects":
                assert pair_part(*names) == "test"
            case "position":
                assert (
                    pair_part(*names) == "train" and position_part(names[0], request.relation or "", names[1]) == "test"
                )
            case "colour attribution":
                assert {part_of_request(request)} == {"test"} and len(set(request.colours)) == 2
    assert all(sum(r.task == task for r in requests) <= count for task, count in COUNTS.items())


def test_no_request_gives_an_object_its_own_colour() -> None:
    assert "red" not in CAT.colours and "blue" in CAT.colours


def test_real_composites_satisfy_their_requests(requests: list[Request]) -> None:
    for request in requests[::9]:
        parts = find_parts(composite(request, random.Random(0)))
        assert len(parts) == (request.number if request.task == "counting" else len(request.words))
        if request.task == "colours":
            assert parts[0].colour == request.colours[0]
        if request.task == "colour attribution":
            assert {part.colour for part in parts} == set(request.colours)


def test_the_floor_scores_each_picture_by_another_request_of_its_task(requests: list[Request]) -> None:
    moved = shuffled(requests)
    assert [r.task for r in moved] == [r.task for r in requests]
    tasks = {r.task: sum(q.task == r.task for q in requests) for r in requests}
    assert all(a is not b for a, b in zip(requests, moved, strict=True) if tasks[a.task] > 1)


def test_accuracies_by_task_and_language() -> None:
    one, two = Request("single object", (CAT,), (None,)), Request("two objects", (CAT, CAR), (None, None))
    right, wrong = [seen("cat"), seen("bus")], [seen("kite")]
    hits = score([one, one, two, two], [[right, wrong]] * 4, languages=2)
    values = hits.values(resamples=10, seed=0)
    assert values["single object, English"].value == 1 and values["two objects, Chinese"].value == 0
    assert values["mean"].value == 0.5 and values["mean, English"].value == 1
    assert hits.groups() == {"objects": 0.5}


def test_the_interval_of_the_mean_is_that_of_independent_tasks() -> None:
    generator = torch.Generator().manual_seed(0)
    requests = [Request(task, (CAT,), (None,)) for task in ("single object", "counting") for _ in range(100)]
    met = (torch.rand(200, 1, 1, generator=generator) < 0.5).double()
    values = Hits(requests, met).values(resamples=400, seed=0)
    assert values["mean"].std == pytest.approx((0.25 / 200) ** 0.5, rel=0.15)


def test_each_request_is_generated_in_both_languages_from_the_same_noise() -> None:
    calls: list[tuple[str, int]] = []

    def pipe(texts: Sequence[str], seed: Sequence[int], **_: Any) -> Any:
        calls.extend(zip(texts, seed, strict=True))
        return SimpleNamespace(images=torch.rand(len(texts), 3, 8, 8))

    requests = [Request("counting", (CAT,), (None,), number) for number in (2, 3)]
    settings: Any = SimpleNamespace()
    drawn = list(draw_requests(pipe, requests, 2, settings, seed=5))  # type: ignore[arg-type]
    assert [len(own) for own in drawn] == [4, 4] and drawn[0][0].shape == (8, 8, 3)
    assert calls[:4] == [("two cats", 5), ("two cats", 6), ("两个cat", 5), ("两个cat", 6)] and calls[4] == (
        "three cats",
        7,
    )


def pixel_network() -> FeatureNetwork:
    """Features: the crop at 5x5."""

    def embed(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 5).flatten(1)}

    return FeatureNetwork("pixels", "none", False, embed)


def test_the_classifier_recognises_shapes_and_reports_its_accuracy(tmp_path: Path) -> None:
    styles = [f"style {k}" for k in range(6)]
    names = ("cat", "bus", "kite")
    words = [Word(name, name, "objects", ()) for name in names]
    sprites = [sprite(name, style, k) for style in styles for k, name in enumerate(names)]
    classifier = teach_classifier(words, sprites, pixel_network(), tmp_path)
    assert classifier.drawings == sum(map(is_held_out_drawing, sprites)) > 0
    assert classifier.accuracy > 0.9
    picture = np.array(compose([(np.array(shape(2)), (20.0, 20.0, 80.0))], "white"))
    assert [[part.concept for part in found] for found in classifier.see([picture, picture * 0])] == [["kite"], []]

    def broken(_: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError("features are kept")

    again = teach_classifier(words, sprites, FeatureNetwork("pixels", "none", False, broken), tmp_path)
    assert again.accuracy == classifier.accuracy


def test_sets_that_share_a_drawing_are_held_out_together() -> None:
    flat = [is_held_out_drawing(sprite(f"thing {k}", "fluent flat", 0)) for k in range(200)]
    colour = [is_held_out_drawing(sprite(f"thing {k}", "fluent color", 0)) for k in range(200)]
    assert flat == colour and 0.05 < sum(flat) / 200 < 0.25


def test_the_vocabulary_has_unambiguous_nouns_equally_many_of_each_group() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = [
        sprite(f"{prefix}{group[:3]}{letter}", style, 0, group=group)
        for group in GROUPS
        for letter in letters
        for prefix in ("", "man ")
        for style in CORE
    ]
    words = read_vocabulary(found)
    assert len(words) == 140 and not any(word.concept.startswith("man ") for word in words)
    assert {word.concept for word in words} == {word.concept for word in read_vocabulary(found[::-1])}
    with pytest.raises(InputError, match="0 unambiguous objects of smileys"):
        read_vocabulary([s for s in found if s.row["group"] != "smileys"])


def test_the_page_has_a_row_for_each_task(requests: list[Request]) -> None:
    hits = Hits(requests, torch.ones(len(requests), 2, 1, dtype=torch.float64))
    values = {key: vars(one) for key, one in hits.values(10, 0).items()}
    result = {
        "model_hash": "0123", "part": "test", "prompts": COUNTS, "pictures": 1, "seed": 0, "settings": {"steps": 25},
        "classifier": {"objects": 3, "held_out_drawings": 2, "accuracy": 0.9},
        "values": {"generated": values, "real": values}, "groups": {"generated": hits.groups(), "real": hits.groups()},
    }  # fmt: skip
    page = write_markdown(result)
    assert all(f"| {task} |" in page for task in (*COUNTS, "mean")) and all(language in page for language in LANGUAGES)
    only_real = write_markdown(result | {"values": {"real": values}, "groups": {"real": hits.groups()}})
    assert "English" not in only_real and "| mean | 553 |" in only_real
