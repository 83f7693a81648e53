"""Write the digits as two image folders, train and held_out: `python -m examples.digits.prepare OUT`."""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from examples.command import exit_code
from examples.folders import whole_folder
from latentdiff.errors import InputError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEVELS = 17  # scikit-learn's grey values are 0 to 16
HELD_OUT_EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    return exit_code(prepare, parser.parse_args().out)


def prepare(out: Path) -> None:
    """Write scikit-learn's 1,797 digits as 8x8 PNGs, one folder per class; every tenth of a class is held out.

    They are not enlarged: enlarged pictures would lie on a lower-dimensional surface and have no density.
    Raises InputError if scikit-learn is missing, or if `out` exists or cannot be created.
    """
    pictures, classes = _read()
    seen: Counter[int] = Counter()
    with whole_folder(out) as partial:
        for picture, digit in zip(pictures, classes, strict=True):
            part = "held_out" if seen[digit] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else "train"
            folder = partial / part / WORDS[digit]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(to_bytes(picture)).save(folder / f"{seen[digit]:03}.png")
            seen[digit] += 1
    print(f"{len(pictures)} digits in {out}")


def to_bytes(grey: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """Scale integer grey values from 0 to levels - 1 to the range 0 to 255."""
    return (grey * (255 / (levels - 1))).round().astype(np.uint8)


def _read() -> tuple[np.ndarray, list[int]]:
    """Grey values [N, 8, 8] from 0 to 16, and the digit of each, from scikit-learn; nothing is downloaded."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "scikit-learn, which contains the digits, is missing; pip install 'latentdiff[digits]'"
        ) from error
    digits = load_digits()
    return digits.images, digits.target.tolist()


if __name__ == "__main__":
    sys.exit(main())
