"""Compare pictures before and after a fine-tune: `python -m examples.finetune.compare RUN -o grid.png`."""

import argparse
import sys
from pathlib import Path

from examples.command import exit_code
from examples.emoji.sheet import contact_sheet
from examples.finetune.streamline import PROMPTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of latentdiff finetune")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--style", default="streamline style")
    parser.add_argument("--seed", type=int, default=0)
    return exit_code(run, parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """Generate both rows and write the sheet."""
    from latentdiff import LatentDiffusionPipeline

    prompts = [f"{prompt}, {given.style}" for prompt in PROMPTS]
    images = []
    for lora in (None, given.run):
        pipe = LatentDiffusionPipeline.from_pretrained(given.model)
        if lora is not None:
            pipe.load_lora(lora)
        images += pipe(prompts, seed=given.seed).images
    labels = [f"{when}: {prompt}" for when in ("before", "after") for prompt in PROMPTS]
    contact_sheet(images, len(prompts), labels).save(given.output)


if __name__ == "__main__":
    sys.exit(main())
