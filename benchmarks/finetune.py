"""The quality of a fine-tune of the bundled model, ours and one written with diffusers and peft.

`python -m benchmarks.finetune CORPUS FOLDERS RUNS NAME SIDE [--set rank=32 ...]` trains on one of the folders that
`examples.finetune.folders` wrote, in a new folder of RUNS, and generates pictures there in 15 steps; a run that was
stopped after its training continues;
`python -m benchmarks.finetune CORPUS FOLDERS RUNS` scores all runs and writes the table and rows of pictures.

likeness: the share of generated pictures that a linear probe assigns to the folder's style or colouring rather than for
one of the corpus' sets; the probe learnt from other pictures of both, encoded and decoded by the model's VAE. For the
subject, the mean cosine of features of generated pictures to the mean of the folder's, both without the mean of the
corpus. concept: the share of pictures, of prompts that name the style or the colouring, that are recognised as their
concept among 60, by the nearest mean of features over all sets. kept: the same of prompts that do not name it, relative
to the base model.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.finetune_judge import Judge
from benchmarks.finetune_sides import SUBJECT_CLASS, Settings, run_side
from benchmarks.report import table, write
from examples.emoji.captions import with_article
from examples.finetune.folders import CAPTIONS, prompt_concepts
from latentdiff import LatentDiffusionPipeline

CANDIDATES, PROMPTS = 60, 24
SUBJECT_PROMPTS = ("{}", "{}, noto style", "{}, twemoji style", "{}, fluent 3d style", "{}, fluent flat style")
STEPS = 15
ROUNDS = {"named": 2, "plain": 1}
TRAINED, FACTS = "trained.json", "benchmark.json"
SHOWN = 12


def prompts(name: str, concepts: Sequence[str]) -> dict[str, list[str]]:
    """Prompts for the folder `name`: with the concept or style that it teaches, and without it."""
    plain = [with_article(concept) for concept in concepts]
    if name == "subject":
        return {"named": [words.format(CAPTIONS[name]) for words in SUBJECT_PROMPTS] * 5, "plain": plain}
    return {"named": [CAPTIONS[name].format(prompt) for prompt in plain], "plain": plain}


def tuned(output: Path, method: str) -> LatentDiffusionPipeline:
    """The bundled model with the result of the run in `output`."""
    if method == "full":
        return LatentDiffusionPipeline.from_pretrained(output / "model")
    pipe = LatentDiffusionPipeline.from_pretrained()
    if method == "textual_inversion":
        pipe.load_textual_inversion(output)
    elif method != "none":
        pipe.load_lora(output)
    return pipe


def draw(pipe: LatentDiffusionPipeline, texts: Sequence[str], rounds: int, folder: Path) -> None:
    """`rounds` pictures of each prompt, round by round, with seeds that do not depend on the model."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(prompt, 1000 * turn + place) for turn in range(rounds) for place, prompt in enumerate(texts)]
    for k in range(0, len(jobs), 8):
        if (folder / f"{min(k + 8, len(jobs)) - 1:03d}.png").exists():
            continue
        part = jobs[k : k + 8]
        wanted, seeds = zip(*part, strict=True)
        images = pipe(list(wanted), seed=list(seeds), num_inference_steps=STEPS, prompt_syntax="plain").images
        for place, image in enumerate(images, k):
            image.save(folder / f"{place:03d}.png")


def run(given: argparse.Namespace) -> None:
    """Train, unless the side is `base`, and generate pictures."""
    options = {key: value for key, _, value in (pair.partition("=") for pair in given.set)}
    words = [f"{key}-{value}" for key, value in options.items()]
    output = given.runs / "_".join([given.name, given.side, *words])
    kept = output / TRAINED
    facts: dict[str, Any] = {"folder": given.name, "side": given.side, "options": options}
    if kept.exists():
        facts = json.loads(kept.read_text(encoding="utf-8"))
    elif given.side != "base":
        extra = {"class_prompt": SUBJECT_CLASS, "prior": given.runs / "prior"} if given.name == "subject" else {}
        settings = Settings(folder=given.folders / given.name, output=output, **extra, **options)
        facts |= run_side(given.side, settings)
        facts["steps"] = settings.plan()[0].optim.max_steps
        kept.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    pipe = tuned(output, "none" if given.side == "base" else options.get("method", "lora"))
    for kind, texts in prompts(given.name, prompt_concepts(given.corpus, PROMPTS)).items():
        draw(pipe, texts, ROUNDS[kind] if given.name != "subject" or kind == "plain" else 1, output / "drawn" / kind)
    (output / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def score(given: argparse.Namespace) -> None:
    """Score every run, and write the table and the first pictures of each."""
    judge = Judge(given.corpus, prompt_concepts(given.corpus, CANDIDATES), PROMPTS)
    runs = sorted(file.parent for file in given.runs.glob(f"*/{FACTS}"))
    rows = [json.loads((run / FACTS).read_text(encoding="utf-8")) | scores(judge, given.folders, run) for run in runs]
    base = {row["folder"]: row for row in rows if row["side"] == "base"}
    write("finetune", __doc__.split("\n\n", 2)[2].strip(), tabulate(rows, base), torch.device("cpu"))
    strips(runs, given.runs / "rows.png")


def scores(judge: Judge, folders: Path, output: Path) -> dict[str, float | None]:
    name = json.loads((output / FACTS).read_text(encoding="utf-8"))["folder"]
    named, plain = (sorted((output / "drawn" / kind).glob("*.png")) for kind in ROUNDS)
    kept = judge.recognised(plain)
    if name == "subject":
        return {"likeness": judge.cosine(named, folders / name), "concept": None, "kept": kept}
    return {"likeness": judge.in_style(named, folders, name), "concept": judge.recognised(named), "kept": kept}


def tabulate(rows: list[dict[str, Any]], base: dict[str, dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        concept = "" if row["concept"] is None else f"{row['concept']:.2f}"
        options = " ".join(f"{key}={value}" for key, value in row["options"].items())
        seconds = f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else ""
        kept = f"{row['kept'] / base[row['folder']]['kept']:.2f}"
        steps = str(row.get("steps", ""))
        cells.append([row["folder"], row["side"], options, steps, f"{row['likeness']:.2f}", concept, kept, seconds])
    return table(["folder", "side", "options", "steps", "likeness", "concept", "kept", "CPU seconds"], cells)


def strips(runs: Sequence[Path], path: Path) -> None:
    """The first pictures of each run in a row, unselected."""
    canvas = Image.new("RGB", (SHOWN * 96, len(runs) * 96), "white")
    for y, output in enumerate(runs):
        for x, file in enumerate(sorted((output / "drawn" / "named").glob("*.png"))[:SHOWN]):
            canvas.paste(Image.open(file).resize((96, 96)), (96 * x, 96 * y))
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="what examples.emoji.prepare made")
    parser.add_argument("folders", type=Path, help="what examples.finetune.folders made")
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("name", nargs="?", choices=list(CAPTIONS), help="if omitted, all runs are scored")
    parser.add_argument("side", nargs="?", choices=["base", "ours", "diffusers"], default="ours")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of finetune")
    given = parser.parse_args()
    score(given) if given.name is None else run(given)


if __name__ == "__main__":
    main()
