"""Requests of the benchmark: GenEval's six tasks (Ghosh et al. 2023) with held-out combinations."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from examples.emoji.colours import BACKGROUNDS, COLOURS
from examples.emoji.combinations import POSITIONS, Part, colour_part, number_part, pair_part, position_part
from examples.emoji.nouns import chinese, english
from examples.emoji.part_classifier import Seen
from examples.emoji.vocabulary import Word

COUNTS = {
    "single object": 80, "two objects": 99, "counting": 80, "colours": 94, "position": 100, "colour attribution": 100,
}  # fmt: skip
RELATIONS = {
    "left of": ("to the left of", "左边"),
    "right of": ("to the right of", "右边"),
    "above": ("above", "上面"),
    "below": ("below", "下面"),
}
LANGUAGES = ("English", "Chinese")
LEAST_OFFSET = 0.1  # of the picture's side


@dataclass(frozen=True)
class Request:
    """One or two objects with optional colours, the number of copies, and the relation of the first to the second."""

    task: str
    words: tuple[Word, ...]
    colours: tuple[str | None, ...]
    number: int = 1
    relation: str | None = None

    @property
    def background(self) -> str:
        """The background colour: white, unless an object is white."""
        if "white" not in self.colours:
            return "white"
        return next(colour for colour in ("blue", "green", "purple", *BACKGROUNDS) if colour not in self.colours)

    def text(self, language: str) -> str:
        """The prompt in one of `LANGUAGES`."""
        return self._english() if language == "English" else self._chinese()

    def _english(self) -> str:
        named = [english(w.concept, self.number, c) for w, c in zip(self.words, self.colours, strict=True)]
        text = f" {RELATIONS[self.relation][0] if self.relation else 'and'} ".join(named)
        return text if self.background == "white" else f"{text} on a {self.background} background"

    def _chinese(self) -> str:
        named = [
            chinese(w.concept, w.concept_zh, self.number, c) for w, c in zip(self.words, self.colours, strict=True)
        ]
        text = f"{named[0]}在{named[1]}的{RELATIONS[self.relation][1]}" if self.relation else "和".join(named)
        return text if self.background == "white" else f"{text}，{COLOURS[self.background].chinese}背景"

    def is_met(self, seen: Sequence[Seen]) -> bool:
        """Whether the parts of a picture satisfy the request in objects and attributes, as in GenEval."""
        found = [
            [part for part in seen if part.concept == word.concept and colour in (None, part.colour)]
            for word, colour in zip(self.words, self.colours, strict=True)
        ]
        if self.task == "counting":
            return len(found[0]) == self.number
        if self.relation is None:
            return all(found)
        return any(_is_placed(first, second, self.relation) for first in found[0] for second in found[1])


def _is_placed(first: Seen, second: Seen, relation: str) -> bool:
    across, down = POSITIONS[relation]
    offset = (first.centre[0] - second.centre[0]) * across + (first.centre[1] - second.centre[1]) * down
    return offset >= LEAST_OFFSET


def make_requests(words: Sequence[Word], part: Part) -> list[Request]:
    """The fixed requests of one part, `COUNTS` per task if there are enough combinations.

    All single objects occur in the training set; validation and test use different ones.
    """
    rng = random.Random("requests")
    found = {
        task: [r for r in _all(task, words) if part_of_request(r) == part] for task in COUNTS if task != "single object"
    }
    shuffled = _round_robin(words, rng)
    singles = shuffled[: COUNTS["single object"]] if part == "test" else shuffled[COUNTS["single object"] :]
    requests = [Request("single object", (word,), (None,)) for word in singles]
    for task, candidates in found.items():
        requests += rng.sample(candidates, min(COUNTS[task], len(candidates)))
    return requests


def _round_robin(words: Sequence[Word], rng: random.Random) -> list[Word]:
    """The words in an order in which the groups alternate."""
    groups: dict[str, list[Word]] = {}
    for word in words:
        groups.setdefault(word.group, []).append(word)
    for members in groups.values():
        rng.shuffle(members)
    longest = max(map(len, groups.values()))
    return [members[k] for k in range(longest) for members in groups.values() if k < len(members)]


def _all(task: str, words: Sequence[Word]) -> list[Request]:
    """All possible requests of a task."""
    if task == "counting":
        return [Request(task, (word,), (None,), number) for word in words for number in (2, 3, 4)]
    if task == "two objects":
        return [Request(task, pair, (None, None)) for pair in combinations(words, 2)]
    if task == "position":
        return [
            Request(task, pair, (None, None), relation=relation)
            for pair in permutations(words, 2)
            for relation in POSITIONS
        ]
    coloured = [(word, colour) for word in words for colour in word.colours]
    if task == "colours":
        return [Request(task, (word,), (colour,)) for word, colour in coloured]
    held_out = [(word, colour) for word, colour in coloured if colour_part(word.concept, colour) != "train"]
    return [
        Request(task, (a, b), (first, second))
        for (a, first), (b, second) in combinations(held_out, 2)
        if a is not b and first != second
    ]


def part_of_request(request: Request) -> Part:
    """The part that a request belongs to, according to the combination that its task tests."""
    names = [word.concept for word in request.words]
    if request.task == "counting":
        return number_part(names[0], request.number)
    if request.task == "colours":
        return colour_part(names[0], request.colours[0] or "")
    if request.task == "two objects":
        return pair_part(*names)
    if pair_part(*names) != "train":
        return "train"
    if request.relation is not None:
        return position_part(names[0], request.relation, names[1])
    parts = {colour_part(name, colour or "") for name, colour in zip(names, request.colours, strict=True)}
    return parts.pop() if len(parts) == 1 else "train"
