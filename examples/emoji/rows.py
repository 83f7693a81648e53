"""Write a labelled picture of the abilities of the model: one row each of objects, colours, numbers and positions.

`python -m examples.emoji.rows -o rows.png [--model FOLDER]`
"""

import argparse
import sys
from pathlib import Path

from examples.command import exit_code
from examples.emoji.sheet import contact_sheet
from latentdiff.files import atomic_path, check_writable_parent

OBJECTS = ("a grinning face", "a woman dancing", "a cat face", "a strawberry cake", "a rocket", "a soccer ball",
           "a guitar", "一本书")  # fmt: skip
COLOURS = ("a red car", "an orange car", "a yellow car", "a green car", "a blue car", "a purple car", "a white car",
           "a black car")  # fmt: skip
NUMBERS = ("a banana", "two bananas", "three bananas", "four bananas", "两只猫", "three green apples", "four blue fish",
           "three hearts on a yellow background")  # fmt: skip
POSITIONS = ("a dog to the left of a tree", "a tree to the left of a dog", "an apple above a car",
             "a car above an apple", "a red car to the left of a blue house", "a cat and a pizza",
             "一个香蕉在一个杯子的左边", "a yellow bird above a green hat")  # fmt: skip
PROMPTS = (*OBJECTS, *COLOURS, *NUMBERS, *POSITIONS)
ENGLISH = {"一本书": "(zh) a book", "两只猫": "(zh) two cats", "一个香蕉在一个杯子的左边": "(zh) banana left of cup"}


def write_rows(output: Path, model: str | None, seed: int) -> None:
    """Generate the prompts with consecutive seeds; none is selected."""
    from latentdiff import LatentDiffusionPipeline

    check_writable_parent(output)
    pipeline = LatentDiffusionPipeline.from_pretrained(model)
    images = pipeline(PROMPTS, seed=list(range(seed, seed + len(PROMPTS)))).images
    labels = [ENGLISH.get(prompt, prompt) for prompt in PROMPTS]
    with atomic_path(output) as path:
        contact_sheet(images, len(OBJECTS), labels).save(path, format="PNG")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return exit_code(write_rows, given.output, given.model, given.seed)


if __name__ == "__main__":
    sys.exit(main())
