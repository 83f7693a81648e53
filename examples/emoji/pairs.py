"""The pictures that models are evaluated on, and their prompts."""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.emoji.split import CORE, HELD_OUT_CONCEPTS, is_validation
from latentdiff.errors import InputError

GROUPS = ("smileys", "animals", "food", "travel", "activities", "objects")
ENDINGS = {"English": "{} style", "Chinese": "{} 风格"}
AT_ONCE = 64


@dataclass(frozen=True)
class Picture:
    """A picture of the corpus with its concept, style and captions."""

    path: Path
    concept: str
    style: str
    captions: tuple[str, ...]

    def asking(self, language: str) -> list[str]:
        """The distinct captions in one language that name the style."""
        ending = ENDINGS[language].format(self.style)
        return list(dict.fromkeys(caption for caption in self.captions if caption.endswith(ending)))


@dataclass(frozen=True)
class Prompt:
    """A prompt. place: the index of the picture that it describes."""

    text: str
    language: str
    place: int
    seed: int


@dataclass(frozen=True)
class Corpus:
    """Trained pictures, held-out pairs for choosing settings and for reporting, and concepts held out completely."""

    train: list[Picture]
    validation: list[Picture]
    test: list[Picture]
    whole: list[Picture]


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the corpus folder and the part of it that the model was trained on."""
    parser.add_argument("corpus", type=Path, help="what examples.emoji.prepare made")
    parser.add_argument("--groups", nargs="+", default=GROUPS, help="those the model was trained on")
    parser.add_argument("--styles", nargs="+", default=CORE, help="those the model was trained on")
    parser.add_argument("--model", default=None, help="model folder; else the bundled one")
    parser.add_argument("--seed", type=int, default=0)


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Add --judge, without which nothing is measured that needs a CLIP model."""
    parser.add_argument("--judge", help="CLIP pair: a text_encoder run; without it, no comparison with texts")


def read_corpus(folder: Path, groups: Sequence[str], styles: Sequence[str]) -> Corpus:
    """The pictures of these groups and styles; one picture, the first, of each held-out pair. Raises InputError.

    Pairs whose concept occurs in no training picture are omitted, because no judge could name it.
    """
    train, held_out = (read_rows(folder / part, groups, styles) for part in ("train", "held_out"))
    one_each = {(picture.concept, picture.style): picture for picture in reversed(held_out)}
    held_out = [one_each[pair] for pair in sorted(one_each)]
    taught = {picture.concept for picture in train} - set(HELD_OUT_CONCEPTS)
    pairs = [picture for picture in held_out if picture.concept in taught]
    corpus = Corpus(
        train=train,
        validation=[picture for picture in pairs if is_validation(picture.concept, picture.style)],
        test=[picture for picture in pairs if not is_validation(picture.concept, picture.style)],
        whole=[picture for picture in held_out if picture.concept in HELD_OUT_CONCEPTS],
    )
    for part in ("train", "validation", "test"):
        if len(getattr(corpus, part)) < 4:
            raise InputError(f"{folder} holds {len(getattr(corpus, part))} {part} pictures of {groups} in {styles}; "
                             "add --groups or --styles")  # fmt: skip
    return corpus


def read_rows(folder: Path, groups: Sequence[str] = GROUPS, styles: Sequence[str] | None = None) -> list[Picture]:
    """The pictures of one part of the corpus. Raises InputError."""
    try:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"{folder} is not a part of the corpus ({error.strerror}); create it with examples.emoji.prepare"
        ) from None
    return [
        Picture(folder / row["file_name"], row["concept"], row["style"], tuple(row["captions"]))
        for row in map(json.loads, lines)
        if row["group"] in groups and (styles is None or row["style"] in styles)
    ]


def file_names(folder: Path, pictures: Sequence[Picture]) -> list[str]:
    """Path and content of each file, which identify it."""
    return [f"{picture.path.relative_to(folder)} {picture.path.stat().st_size}" for picture in pictures]


def identity(folder: Path, corpus: Corpus) -> str:
    """A hash of the pictures in the corpus, their parts and their captions."""
    parts = [
        [file_names(folder, pictures), [picture.captions for picture in pictures]]
        for pictures in (corpus.train, corpus.validation, corpus.test, corpus.whole)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def make_prompts(pictures: Sequence[Picture], count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts in rounds over the pictures: each in English, then in Chinese with the same noise.

    Each round uses the next captions and different noise.
    """
    prompts = [
        Prompt(asking[turn % len(asking)], language, place, seed + turn * len(pictures) + place)
        for turn in range(-(-count // (2 * len(pictures))))
        for place, picture in enumerate(pictures)
        for language in ENDINGS
        if (asking := picture.asking(language))
    ]
    return prompts[:count]


def pixels_of(pictures: Sequence[Picture]) -> Iterator[Tensor]:
    """Read pictures in batches of uint8 [B, 3, R, R]."""
    for k in range(0, len(pictures), AT_ONCE):
        opened = [Image.open(picture.path).convert("RGB") for picture in pictures[k : k + AT_ONCE]]
        yield torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in opened])
