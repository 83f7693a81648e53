"""Measure the effect of steps, guidance, samplers and the VAE on quality; write a page with tables and plots.

`python -m examples.emoji.quality data/emoji -o docs/quality.md [--judge RUN] [--model FOLDER] [--quick]`

It uses the pairs that are held out for choosing settings. Finished cells are cached in a JSON file next to the page, so
that an interrupted run continues.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.command import exit_code
from examples.emoji.bench import Bench, open_bench
from examples.emoji.drawing import Settings, draw, judge_bias
from examples.emoji.judges import JUDGE, Seen
from examples.emoji.pairs import Picture, Prompt, add_corpus_options, add_judge, identity, make_prompts, pixels_of
from examples.emoji.quality_page import Cell, Facts, Results, write_page
from latentdiff.checkpoints.components import read_vae
from latentdiff.data.latent_cache import fingerprint
from latentdiff.errors import InputError
from latentdiff.files import atomic_path, check_writable_parent, read_json
from latentdiff.metrics.alignment import alignment
from latentdiff.metrics.bootstrap import NORMAL_95, intervals
from latentdiff.metrics.frechet import frechet_distance
from latentdiff.metrics.reconstruction import reconstruct
from latentdiff.models.vae import AutoencoderKL
from latentdiff.recipe.model_hash import hash_model
from latentdiff.sampling.samplers import SAMPLERS, plan

FLOOR_DRAWS, LEAST = 5, 4


class Lab:
    """Cells of the tables, each measured once and cached in `store`; settings with equal plans share a cell."""

    def __init__(self, bench: Bench, given: argparse.Namespace, store: Path) -> None:
        self.bench, self.store, self.seed = bench, store, given.seed
        self.features = bench.train_features
        self.model_hash = hash_model(bench.folder)
        judge = None if bench.clip is None else fingerprint(bench.clip.model.state_dict().items())
        self.context = [
            self.model_hash, str(bench.pipe.dtype), list(given.groups), list(given.styles), given.seed,
            judge, identity(given.corpus, bench.corpus), JUDGE,
        ]  # fmt: skip
        self.used: set[str] = set()
        self.cells: dict[str, Cell] = read_json(store, "delete it") if store.is_file() else {}

    def cell(self, count: int, settings: Settings) -> Cell:
        """The metrics of `count` pictures generated with these settings."""
        steps = plan(self.bench.pipe.schedule, settings.sampler, settings.num_inference_steps, settings.eta)
        how = [repr(steps), settings.guidance_scale, settings.guidance_interval if settings.guidance_scale != 1 else 0]
        return self._kept([count, how], lambda: self._measure(count, settings), f"{count} pictures, {settings}")

    def floor(self, count: int) -> Cell:
        """Frechet distance of equally few training pictures to the others, as a reference for generated pictures."""
        return self._kept([count, "floor"], lambda: self._floor(count), f"{count} training pictures")

    def vae(self, pictures: list[Picture]) -> Cell:
        """Reconstruction metrics of the VAE on held-out pictures."""
        return self._kept([len(pictures), "vae"], lambda: self._vae(pictures), "VAE")

    def _kept(self, what: Any, make: Any, words: str) -> Cell:
        key = hashlib.sha256(json.dumps([what, self.context]).encode()).hexdigest()[:16]
        self.used.add(key)
        if key not in self.cells:
            print(words, file=sys.stderr)
            self.cells[key] = make() | {"of": words}
            self._write()
        return self.cells[key]

    def forget_others(self) -> None:
        """Remove cells that were not used since the store was opened, such as those of other models."""
        self.cells = {key: cell for key, cell in self.cells.items() if key in self.used}
        self._write()

    def _write(self) -> None:
        with atomic_path(self.store) as partial:
            partial.write_text(json.dumps(self.cells, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _measure(self, count: int, settings: Settings) -> Cell:
        pictures = self.bench.corpus.validation
        prompts = make_prompts(pictures, count, self.seed)
        seen = self.bench.see(draw(self.bench.pipe, prompts, settings))
        hits = self.bench.judges.hits(seen, [pictures[prompt.place] for prompt in prompts])
        place = torch.tensor([prompt.place for prompt in prompts])

        def shares(pairs: Tensor, _: Tensor) -> dict[str, float]:
            return {name: values[torch.isin(place, pairs)].mean().item() for name, values in hits.items()}

        found = intervals(shares, (int(place.max()) + 1, 0), 100, self.seed)
        return {
            "frechet": frechet_distance(seen.features, self.features),
            **self._alignment(seen, prompts),
            **{name: one.value for name, one in found.items()},
            **{f"{name}_error": NORMAL_95 * one.std for name, one in found.items()},
        }

    def _alignment(self, seen: Seen, prompts: list[Prompt]) -> dict[str, float]:
        """The mean cosine of pictures and prompts, if there is a CLIP judge."""
        if self.bench.clip is None or seen.image is None:
            return {}
        text = self.bench.clip.embed_text([prompt.text for prompt in prompts]).float().cpu()
        return {"alignment": alignment(seen.image, text)}

    def _floor(self, count: int) -> Cell:
        values = []
        for k in range(FLOOR_DRAWS):
            order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(self.seed + k))
            values.append(frechet_distance(self.features[order[:count]], self.features[order[count:]]))
        std, mean = torch.std_mean(torch.tensor(values, dtype=torch.float64))
        return {"frechet": mean.item(), "frechet_std": std.item()}

    def _vae(self, pictures: list[Picture]) -> Cell:
        vae = read_vae(self.bench.folder / "vae")
        assert isinstance(vae, AutoencoderKL)
        result = reconstruct(vae, _Shown(pictures), "vae", self.bench.network, self.seed).to_json()
        return {"values": result["values"], "notes": result["notes"], **result["generated"]}


class _Shown:
    """Pictures of the corpus in the form that metrics read."""

    captions = None

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures
        self.source = {"count": len(pictures)}
        self.resolution = next(pixels_of(pictures[:1])).shape[-1]

    def __len__(self) -> int:
        return len(self.pictures)

    def batches(self) -> Iterator[Tensor]:
        return pixels_of(self.pictures)


def collect(lab: Lab, given: argparse.Namespace) -> Results:
    """All cells of all tables. The DDIM table, with 2,360 steps, uses half as many pictures and no guidance."""
    quick, count, few = given.quick, given.num, max(LEAST, given.num // 2)
    guidance = lab.bench.pipe.generation.with_given(guidance_scale=given.guidance_scale).guidance_scale
    usual = Settings(4 if quick else 25, guidance)
    lengths = (2, 4) if quick else (10, 20, 50, 100, 1000)
    scales = (1.0, 5.0) if quick else (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0)
    calls = (2, 4) if quick else (10, 15, 20, 25)
    # Equal numbers of calls, so one call per step; lcm is for models that were distilled for it.
    names = [name for name, one in SAMPLERS.items() if name != "lcm" and one.evaluations == 1]
    middle = (0.2, 0.8)
    corpus = lab.bench.corpus
    return Results(
        steps={
            (eta, steps): lab.cell(few, Settings(steps, 1.0, eta=eta)) for eta in (0.0, 1.0) for steps in lengths
        },
        guidance={scale: lab.cell(count, replace(usual, guidance_scale=scale)) for scale in scales},
        interval={
            (scale, part): lab.cell(count, replace(usual, guidance_scale=scale, guidance_interval=part))
            for scale in (usual.guidance_scale, usual.guidance_scale + 2)
            for part in ((0.0, 1.0), middle)
        },
        samplers={
            (name, steps): lab.cell(count, replace(usual, sampler=name, num_inference_steps=steps))
            for name in names
            for steps in calls
        },
        floors=(lab.floor(few), lab.floor(count)),
        vae=lab.vae([*corpus.validation, *corpus.test, *corpus.whole]),
        facts=Facts(
            few, count, given.seed, usual, len(corpus.validation), len(lab.features), lab.model_hash, quick,
            judge_bias(lab.bench.clip, lab.bench.pipe),
        ),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_options(parser)
    add_judge(parser)
    parser.add_argument("--num", type=int, default=96, help="pictures per cell; half as many in the DDIM table")
    parser.add_argument("--guidance-scale", type=float, help="of the samplers' table [the model's own]")
    parser.add_argument("--quick", action="store_true", help="a few cells with few pictures, to test the command")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.quick:
        given.num, given.groups = 8, list(given.groups)[:1]
    return exit_code(run, given)


def run(given: argparse.Namespace) -> None:
    """Measure the cells that are not cached, and write the page."""
    if given.num < LEAST:
        raise InputError(f"--num {given.num} must be at least {LEAST}, two pairs in two languages; try 96")
    check_writable_parent(given.output)
    lab = Lab(open_bench(given), given, given.output.with_suffix(".json"))
    with torch.no_grad():
        write_page(collect(lab, given), given.output)
    lab.forget_others()


if __name__ == "__main__":
    sys.exit(main())
