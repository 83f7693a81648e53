"""Scenes of the emoji corpus: pictures match their captions, and held-out combinations never occur."""

import colorsys
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.emoji.colours import COLOURS, can_recolour, name_colour, recolour, to_hsv, to_rgb
from examples.emoji.combinations import HELD_OUT, OPPOSITE, colour_part, number_part, pair_part, part_of, position_part
from examples.emoji.layout import (
    GAP,
    SIZE,
    cells_of_copies,
    cells_of_two,
    compose,
    inside,
    relative_positions,
    stands_out,
)
from examples.emoji.nouns import NUMBERS, chinese, english, is_counted, plural
from examples.emoji.parts import find_parts
from examples.emoji.scene_captions import RELATIONS, Phrase, scene_captions
from examples.emoji.scenes import Scene, SceneMaker, make_scenes
from examples.emoji.split import CORE
from examples.emoji.sprites import Sprite, read_sprites
from latentdiff.errors import InputError
from tests.emoji_corpus import shape, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def sprites(corpus: Path) -> list[Sprite]:
    return read_sprites(corpus, CORE)


@pytest.fixture(scope="module")
def scenes(sprites: list[Sprite]) -> list[Scene]:
    maker = SceneMaker(sprites, seed=0)
    return [maker.scene(k) for k in range(150)]


def test_hsv_is_colorsys() -> None:
    rgb = np.random.default_rng(0).random((50, 3), np.float32)
    rgb[:3] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]
    hue, saturation, value = to_hsv(rgb)
    expected = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in rgb.tolist()])
    assert np.allclose(np.stack([hue / 360, saturation, value], 1), expected, atol=1e-5)
    assert np.allclose(to_rgb(hue, saturation, value), rgb, atol=1e-5)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("number", range(6))
def test_a_recoloured_object_has_the_colour_of_its_name(number: int, colour: str) -> None:
    rgba = np.array(shape(number))
    painted = recolour(rgba, COLOURS[colour])
    assert name_colour(painted[painted[..., 3] >= 128][:, :3]) == colour
    assert (painted[..., 3] == rgba[..., 3]).all()
    assert (painted[66, 62] == 255).all()  # the white mark is not recoloured


def test_grey_and_many_coloured_pictures_are_not_recoloured() -> None:
    grey = np.full((8, 8, 4), 128, np.uint8)
    halves = np.full((8, 8, 4), 255, np.uint8)
    halves[:4, :, :3], halves[4:, :, :3] = (230, 40, 40), (40, 200, 200)
    assert not can_recolour(grey) and not can_recolour(halves) and can_recolour(halves[:4])


def test_an_object_with_a_colour_in_its_name_is_not_recoloured(sprites: list[Sprite]) -> None:
    red_book = Sprite(sprites[0].row | {"concept": "green book"}, sprites[0].rgba, sprites[0].path)
    red_apple = Sprite(sprites[0].row | {"concept": "red apple"}, sprites[0].rgba, sprites[0].path)
    assert red_book.in_colour("blue") is None and red_apple.in_colour("blue") is not None
    assert english("red apple", colour="blue") == "a blue apple" and "红" not in chinese(
        "red apple", "红苹果", 1, "blue"
    )


def test_a_scene_depends_only_on_seed_and_number(sprites: list[Sprite], scenes: list[Scene]) -> None:
    again = SceneMaker(sprites, seed=0)
    for number in (149, 7, 60):
        scene = again.scene(number)
        assert scene.captions == scenes[number].captions
        assert scene.image.tobytes() == scenes[number].image.tobytes()
    others = SceneMaker(sprites, seed=1)
    assert any(others.scene(k).captions != scenes[k].captions for k in range(5))


def test_all_kinds_of_scenes_appear(scenes: list[Scene]) -> None:
    kinds = {scene.kind for scene in scenes}
    assert kinds == {"original", "single", "colour", "number", "pair", "position", "attributes", "several"}
    assert {len(scene.concepts) for scene in scenes if scene.kind == "several"} == {3, 4}


def test_no_held_out_combination_is_shown(scenes: list[Scene]) -> None:
    counted = {english_number: number for number, (english_number, _) in NUMBERS.items() if number > 1}
    seen = 0
    for scene in scenes:
        for first, second in itertools.combinations(scene.concepts, 2):
            assert pair_part(first, second) == "train"
            seen += 1
        if scene.kind == "number":
            (number,) = {counted[word] for word in scene.captions[0].split() if word in counted}
            assert number_part(scene.concepts[0], number) == "train"
            seen += 1
        if scene.kind == "colour":
            said = scene.captions[0].split(" background")[0].split(" on a")[0]
            (colour,) = set(re.findall("|".join(COLOURS), said))
            assert colour_part(scene.concepts[0], colour) == "train"
            seen += 1
    assert seen > 50


def test_cells_of_a_grid_know_their_positions_to_each_other() -> None:
    """Scenes of several objects exclude held-out positions by these words."""
    first, right, below, diagonal = ((x, y, 64.0) for x, y in ((0.0, 0.0), (64.0, 0.0), (0.0, 64.0), (64.0, 64.0)))
    assert relative_positions(first, right) == ["left of"] and relative_positions(right, first) == ["right of"]
    assert relative_positions(first, below) == ["above"] and relative_positions(below, first) == ["below"]
    assert relative_positions(first, diagonal) == ["left of", "above"]
    assert relative_positions(right, below) == ["right of", "above"]


def test_scenes_have_as_many_parts_as_their_captions_state(scenes: list[Scene]) -> None:
    counted = {english_number: number for number, (english_number, _) in NUMBERS.items()}
    for scene in scenes:
        if scene.kind == "original":
            continue
        numbers = [counted[word] for word in scene.captions[0].split() if word in counted]
        expected = numbers[0] if numbers else len(scene.concepts)
        assert len(find_parts(np.array(scene.image))) == expected, scene.captions


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_objects_have_the_relative_position_of_the_caption(relation: str) -> None:
    red, blue = np.array(shape(0)), np.array(shape(4))
    for seed in range(20):
        rng = random.Random(seed)
        boxes = [inside(rng, cell, rng.uniform(0.75, 1)) for cell in cells_of_two(rng, relation)]
        parts = {
            part.colour: part for part in find_parts(np.array(compose([(red, boxes[0]), (blue, boxes[1])], "white")))
        }
        axis = 0 if relation == "left of" else 1
        assert parts["red"].centre[axis] < parts["blue"].centre[axis] - 0.1


@pytest.mark.parametrize("number", [2, 3, 4])
def test_copies_keep_their_distance(number: int) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        boxes = [inside(rng, cell, rng.uniform(0.8, 1)) for cell in cells_of_copies(rng, number)]
        for (left, top, side), (left2, top2, side2) in itertools.combinations(boxes, 2):
            apart = max(left2 - left - side, left - left2 - side2, top2 - top - side, top - top2 - side2)
            assert apart >= GAP - 1e-9
        assert all(x >= GAP / 2 and x + side <= SIZE - GAP / 2 + 1e-9 for *place, side in boxes for x in place)


def test_colours_like_the_background_have_low_contrast() -> None:
    white = np.full((8, 8, 4), 255, np.uint8)
    assert not stands_out(white, "white") and stands_out(white, "blue")


def test_the_parts_of_combinations_have_their_shares_and_ignore_the_order() -> None:
    for kind, share in HELD_OUT.items():
        parts = [part_of(kind, f"{k}", "x") for k in range(3000)]
        assert abs(parts.count("test") / 3000 - share * 2 / 3) < 0.02
        assert abs(parts.count("validation") / 3000 - share / 3) < 0.02
    for k, relation in itertools.product(range(30), OPPOSITE):
        assert pair_part(f"{k}", "x") == pair_part("x", f"{k}")
        assert position_part(f"{k}", relation, "x") == position_part("x", OPPOSITE[relation], f"{k}")


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("cherry", "cherries"), ("monkey", "monkeys"), ("fox", "foxes"), ("leaf", "leaves"),
        ("woman", "women"), ("tropical fish", "tropical fish"), ("computer mouse", "computer mice"),
        ("glass of milk", "glasses of milk"),
    ],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_phrases() -> None:
    assert english("cat", 1, "orange") == "an orange cat" and english("cat", 3, "blue") == "three blue cats"
    assert english("unicorn") == "a unicorn" and english("owl", size="small") == "a small owl"
    assert chinese("cat", "猫", 3, "blue", measure="只") == "三只蓝色的猫" and chinese("cat", "猫", 2) == "两个猫"
    assert is_counted("cat") and not any(map(is_counted, ("bread", "skis", "five o'clock", "man, beard", "1st place")))


def test_captions_name_every_colour_number_and_place_in_both_languages() -> None:
    cat, car = Phrase("cat", "猫", "animals", colour="blue"), Phrase("bus", "公交车", "travel", colour="red")
    texts = scene_captions([cat, car], "left of", "yellow", "noto", random.Random(0))
    for text in texts[:4]:
        assert all(word in text for word in ("blue", "red", "cat", "bus", "yellow background")), text
        assert "left" in text or "right" in text
    for text in texts[4:]:
        assert all(word in text for word in ("蓝色", "红色", "猫", "公交车", "黄色背景")), text
        assert "左" in text or "右" in text


def test_a_folder_of_scenes_is_created_atomically(corpus: Path, tmp_path: Path, scenes: list[Scene]) -> None:
    make_scenes(corpus, tmp_path / "scenes", 6, list(CORE), 0, 1)
    rows = [json.loads(line) for line in (tmp_path / "scenes/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["captions"] for row in rows] == [list(scene.captions) for scene in scenes[:6]]
    image = Image.open(tmp_path / "scenes" / rows[3]["file_name"])
    assert image.tobytes() == scenes[3].image.tobytes()
    with pytest.raises(InputError, match="not an empty folder"):
        make_scenes(corpus, tmp_path / "scenes", 6, list(CORE), 0, 1)
    with pytest.raises(InputError, match="num=0"):
        make_scenes(corpus, tmp_path / "none", 0, list(CORE), 0, 1)
    with pytest.raises(InputError, match="prepare"):
        read_sprites(tmp_path, CORE)
