"""The standard, the nearest pictures and the quality page, on a tiny corpus with judges whose results are known."""

import errno
import json
import random
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from examples.emoji import bench as benches
from examples.emoji import judges, quality, standard
from examples.emoji import nearest as copying
from examples.emoji.drawing import Settings, judge_bias, weight_similarity
from examples.emoji.judges import Judges, Seen, first_of, fit_probe, look, pools
from examples.emoji.pairs import Corpus, Picture, make_prompts, pixels_of, read_corpus
from examples.emoji.split import CORE, is_validation
from examples.emoji.textures import HARDLY_SEEN, Change
from latentdiff.checkpoints.locate_model import bundled_model
from latentdiff.errors import InputError
from latentdiff.metrics.evaluate import Evaluation
from latentdiff.metrics.features import FeatureNetwork
from latentdiff.pipeline import LatentDiffusionPipeline
from tests.small import small_text_encoder, small_tokenizer

CONCEPTS = [f"thing {k}" for k in range(40)]
SIZE = 16
NO_JUDGE = judge_bias(None, None)  # type: ignore[arg-type]
pytestmark = pytest.mark.filterwarnings("ignore:the prompt is over")


def colours(pixels: Tensor) -> dict[str, Tensor]:
    """The mean colours of the quarters, in which the pictures of the tiny corpus differ."""
    return {"features": torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1)}


NETWORK = FeatureNetwork("colours", "none", False, colours)


def paint(concept: str, style: str) -> Image.Image:
    """The upper half encodes the concept, the lower half the style."""
    image, rng, s = Image.new("RGB", (SIZE, SIZE)), random.Random(concept), CORE.index(style)
    for x in (0, SIZE // 2):
        image.paste((rng.randrange(256), rng.randrange(256), rng.randrange(256)), (x, 0, x + SIZE // 2, SIZE // 2))
    image.paste((60 * s, 255 - 60 * s, 40 * s), (0, SIZE // 2, SIZE, SIZE))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 concepts in four styles; the style k % 4 of each is held out, and koala never occurs."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}
    for k, concept in enumerate([*CONCEPTS, "koala"]):
        for s, style in enumerate(CORE):
            part = "held_out" if concept == "koala" or s == k % 4 else "train"
            name = f"{style.replace(' ', '-')}/{k}.png"
            captions = [f"{concept}, {style} style", f"a {concept}, {style} style", concept, f"物{k}，{style} 风格"]
            rows[part].append(
                {"file_name": name, "captions": captions, "concept": concept, "style": style, "group": "food"}
            )
            (tmp_path / "corpus" / part / name).parent.mkdir(parents=True, exist_ok=True)
            paint(concept, style).save(tmp_path / "corpus" / part / name)
    for part, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (tmp_path / "corpus" / part / "metadata.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "corpus"


class ColourClip:
    """A CLIP model that reads the upper half and knows every concept."""

    weights = "a judge"

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Linear(1, 1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        return colours(pixels)["features"].view(-1, 3, 2, 2)[:, :, 0].flatten(1) - 0.5

    def embed_text(self, texts: list[str]) -> Tensor:
        names = [text.removeprefix("an ").removeprefix("a ").split(",")[0] for text in texts]
        names = [f"thing {name[1:].split('，')[0]}" if name.startswith("物") else name for name in names]
        return self.embed_images(torch.stack([_tensor(paint(name, CORE[0])) for name in names]))


def _tensor(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)


def corpus_of(folder: Path) -> Corpus:
    return read_corpus(folder, ["food"], CORE)


def make_bench(folder: Path, pipe: Any) -> benches.Bench:
    corpus = corpus_of(folder)
    features = look(pixels_of(corpus.train), NETWORK).features
    judges = Judges(corpus, features, features[None], ColourClip())  # type: ignore[arg-type]
    return benches.Bench(corpus, features, judges, NETWORK, NETWORK, ColourClip(), pipe)  # type: ignore[arg-type]


class Painter:
    """A model that follows the prompt, or always generates the same picture."""

    folder = bundled_model()
    dtype = torch.float32

    def __init__(self, faithful: bool) -> None:
        self.faithful = faithful

    def __call__(self, texts: list[str], seed: list[int], **settings: Any) -> Any:
        images = torch.stack([_tensor(self._paint(text)) for text in texts]).float() / 255
        noise = torch.stack([torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(s)) for s in seed])
        return Namespace(images=(images + 0.02 * noise).clamp(0, 1))

    def _paint(self, text: str) -> Image.Image:
        head, tail = text.replace("，", ", ").split(", ")
        concept = f"thing {head[1:]}" if head.startswith("物") else head.removeprefix("a ")
        concept = "koala" if concept == "thing 40" else concept
        style = tail.removesuffix(" style").removesuffix(" 风格")
        return paint(concept, style) if self.faithful else paint("thing 3", CORE[0])


def test_the_parts_are_disjoint_and_fixed(folder: Path) -> None:
    corpus = corpus_of(folder)
    parts = [{(p.concept, p.style) for p in part} for part in (corpus.train, corpus.validation, corpus.test)]
    assert [len(part) for part in parts] == [120, len(corpus.validation), 40 - len(corpus.validation)]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
    assert {p.concept for p in corpus.whole} == {"koala"} and len(corpus.whole) == 4
    share = sum(is_validation(f"concept {k}", style) for k in range(1000) for style in CORE) / 4000
    assert share == pytest.approx(1 / 3, abs=0.03)
    assert [is_validation(name, "noto") for name in ("cookie", "dragon", "giraffe", "lion")] == CHOSEN
    with pytest.raises(InputError, match="holds 0 train pictures"):
        read_corpus(folder, ["travel"], CORE)
    with pytest.raises(InputError, match="is not a part of the corpus"):
        read_corpus(folder / "none", ["food"], CORE)


CHOSEN = [True, True, False, True]


def test_prompts_are_evenly_distributed_over_pairs_and_languages(folder: Path) -> None:
    pictures = corpus_of(folder).test[:5]
    prompts = make_prompts(pictures, 24, seed=3)
    assert len(prompts) == 24 and all(pictures[p.place].style in p.text for p in prompts)
    english, chinese = prompts[::2], prompts[1::2]
    assert [p.language for p in english] == ["English"] * 12 and all("风格" in p.text for p in chinese)
    assert [(p.place, p.seed) for p in english] == [(p.place, p.seed) for p in chinese]
    assert len({p.seed for p in english}) == 12 and len({(p.text, p.seed) for p in prompts}) == 24


@pytest.mark.parametrize("change", HARDLY_SEEN)
def test_invisible_changes_alter_few_levels_and_are_reproducible(change: Change) -> None:
    pixels = torch.full((4, 3, 32, 32), 90, dtype=torch.uint8)
    pixels[..., 16:] = 120
    made, again = (change(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    off = (made.double() - pixels.double()).abs()
    assert made.dtype == torch.uint8 and torch.equal(made, again)
    assert 0 < off.mean() < 4 and off.max() < 20


def test_the_probe_finds_the_plane_and_the_candidates_are_fixed() -> None:
    x = torch.randn(300, 4)
    labels = torch.stack([x @ torch.tensor([1.0, 0, 0, 0]), x @ torch.tensor([0, 1.0, 0, 0]), 0 * x[:, 0]], 1).argmax(1)
    probe = fit_probe(x, labels, ridge=1e-4)
    assert (probe(x) == labels).double().mean() > 0.98
    gradient = torch.autograd.functional.jacobian(
        lambda w: (
            torch.nn.functional.cross_entropy(_with(probe, w).logits(x), labels) + 1e-4 / 2 * w[:-1].square().sum()
        ),
        probe.weight,
    )
    assert gradient.abs().max() < 1e-4
    found = pools(["a", "new"], [f"c{k}" for k in range(200)] + ["a"])
    assert found == pools(["a", "new"], ["a"] + [f"c{k}" for k in reversed(range(200))])
    assert [len(set(pool)) for pool in found] == [100, 100] and found[0][0] == "a" and found[1][0] == "new"


def _with(probe: Any, weight: Tensor) -> Any:
    return type(probe)(probe.mean, probe.std, weight)


def test_a_tie_is_not_counted_as_a_hit() -> None:
    similarity = torch.tensor([[1.0, 0.5, 0.2], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3]])
    assert first_of(similarity, torch.tensor([[0, 1, 2]] * 3)).tolist() == [True, False, False]


def test_real_pictures_are_recognised_and_wrong_requests_are_detected(folder: Path) -> None:
    bench = make_bench(folder, None)
    test = bench.corpus.test
    seen = bench.see(pixels_of(test))
    hits = bench.judges.hits(seen, test)
    assert hits.keys() == {"style", "clip", "centroid"}
    assert hits["clip"].mean() == hits["style"].mean() == 1 and hits["centroid"].mean() > 0.9
    styles = [CORE[(CORE.index(picture.style) + 1) % 4] for picture in test]
    other = [replace(p, style=style) for p, style in zip(test[1:] + test[:1], styles, strict=True)]
    wrong = bench.judges.hits(seen, other)
    assert all(values.mean() < 0.1 for values in wrong.values())
    assert "centroid" not in bench.judges.hits(bench.see(pixels_of(bench.corpus.whole)), bench.corpus.whole)


def run_standard(folder: Path, faithful: bool, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    monkeypatch.setattr(standard, "judge_bias", lambda clip, pipe: "The judge is biased")
    return standard.measure(make_bench(folder, Painter(faithful)), 80, Settings(1, 5.0), seed=0, resamples=8)


def test_a_model_that_follows_prompts_meets_the_standard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_standard(folder, True, monkeypatch)
    values = {key: one.value for key, one in result.values.items()}
    for key in ("concept_clip_share", "concept_centroid_share", "style", "never_seen_style", "never_seen_clip_real"):
        assert values[key] == pytest.approx(1, abs=0.05), key
    assert values["frechet_times"] == pytest.approx(1, abs=0.3) and values["language_gap_clip"] == pytest.approx(
        0, abs=0.05
    )
    assert all(one["met"] for one in standard.verdicts(result))
    assert result.notes[0] == "The judge is biased" and result.shown[0][2].startswith(("koala", "a koala"))


def test_a_model_that_ignores_prompts_misses_the_standard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_standard(folder, False, monkeypatch)
    met = {one["asks"].split(",")[0]: one["met"] for one in standard.verdicts(result)}
    assert not any(value for key, value in met.items() if not key.startswith("English"))
    assert result.values["concept_clip"].value < 0.1 and result.values["frechet_times"].value > 3
    assert result.values["style_real"].value == 1


def test_distances_reveal_a_copy(folder: Path) -> None:
    train = torch.eye(5)
    values, rows = copying.nearest(torch.tensor([[0, 2.0, 0, 0, 0], [1, 1, 0, 0, 0]]), train, count=2)
    assert rows[0, 0] == 1 and values[0].tolist() == pytest.approx([0, 1])
    assert values[1].tolist() == pytest.approx([1 - 0.5**0.5] * 2)
    real = torch.linspace(0.1, 1, 1000)
    assert copying.copied(real, real) == pytest.approx(0.05, abs=0.002)
    assert copying.copied(torch.zeros(10), real) == 1 and copying.copied(torch.ones(10), real) == 0


@pytest.fixture
def opened(folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the commands use the tiny network and judge."""
    for module in (benches, copying):
        monkeypatch.setattr(module, "feature_network", lambda: NETWORK)
    monkeypatch.setattr(benches, "texture_network", lambda: NETWORK)
    monkeypatch.setattr(benches, "open_clip", lambda judge, device: ColourClip())
    for module in (standard, quality):
        monkeypatch.setattr(module, "judge_bias", lambda clip, pipe: "The judge is biased" if clip else NO_JUDGE)
    return folder


def call(module: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    return module.main()  # type: ignore[no-any-return]


def test_the_commands(opened: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    usual = [opened, "--groups", "food", "--model", model_folder]
    out, page, sheet = tmp_path / "s.json", tmp_path / "s.html", tmp_path / "s.png"
    brief = ["--judge", "j", "--num", 80, "--steps", 1, "--resamples", 3, "-o", out, "--html", page, "--sheet", sheet]
    assert call(standard, monkeypatch, *usual, *brief) == 0
    found = json.loads(out.read_text())
    assert len(found["standard"]) == len(standard.BARS) and {"low", "high"} < found["values"]["style"].keys()
    assert "MISSED" in capsys.readouterr().out and "koala" in page.read_text() and Image.open(sheet).width == 8 * SIZE
    assert call(copying, monkeypatch, *usual, "--steps", 1, "-o", tmp_path / "n.png") == 0
    printed = capsys.readouterr().out
    assert "| real held-out pairs |" in printed and "5 % would be no copying" in printed
    assert Image.open(tmp_path / "n.png").height > 5 * SIZE
    assert len(list(opened.glob("features-*.safetensors"))) == 1 + len(HARDLY_SEEN)
    assert call(copying, monkeypatch, *usual, "-o", tmp_path / "none" / "n.png") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupted_page_continues(
    opened: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [opened, "--groups", "food", "--model", model_folder, "--judge", "j", "--quick", "-o", tmp_path / "q.md"]
    assert call(quality, monkeypatch, *words) == 0
    text, cells = (tmp_path / "q.md").read_text(), json.loads((tmp_path / "q.json").read_text())
    assert sorted(path.name for path in tmp_path.glob("q*")) == [
        "q-guidance.svg", "q-samplers.svg", "q-steps.svg", "q.json", "q.md",
    ]  # fmt: skip
    assert all(part in text for part in ("| eta | S=2 | S=4 |", "| euler_ancestral | 4 |", "PSNR, dB", "n = 8"))
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.endswith(" |")}
    assert rows["| euler_ancestral"].split("|")[3:] == rows["| ddpm"].split("|")[3:]  # one plan, one cell
    (tmp_path / "q.json").write_text(json.dumps(dict(list(cells.items())[1:])))
    drawn: list[int] = []
    measure = quality.Lab._measure
    monkeypatch.setattr(quality.Lab, "_measure", lambda lab, n, how: drawn.append(n) or measure(lab, n, how))
    assert call(quality, monkeypatch, *words) == 0
    assert len(cells) == 21 and drawn == [4] and (tmp_path / "q.md").read_text() == text
    assert '<svg xmlns="http://www.w3.org/2000/svg"' in (tmp_path / "q-steps.svg").read_text()


def test_without_a_judge_nothing_is_compared_with_texts(
    opened: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = [opened, "--groups", "food", "--model", model_folder]
    brief = ["--num", 80, "--steps", 1, "--resamples", 3, "-o", tmp_path / "s.json"]
    assert call(standard, monkeypatch, *usual, *brief) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["judge"] is None and found["notes"][0] == NO_JUDGE
    assert not any("clip" in key for key in found["values"]) and "concept_centroid" in found["values"]
    assert [one["asks"] for one in found["standard"]] == [bar.asks for bar in standard.BARS if "clip" not in bar.key]
    assert call(quality, monkeypatch, *usual, "--quick", "-o", tmp_path / "q.md") == 0
    text = (tmp_path / "q.md").read_text()
    assert NO_JUDGE in text and "| sampler | calls | Frechet | centroid | style |\n" in text


def test_cells_are_of_one_judge_and_one_corpus(folder: Path, tmp_path: Path) -> None:
    bench, given = make_bench(folder, Painter(True)), Namespace(corpus=folder, groups=["food"], styles=CORE, seed=0)

    def context(bench: benches.Bench) -> list[Any]:
        return quality.Lab(bench, given, tmp_path / "none.json").context

    judged = replace(bench, clip=ColourClip(seed=1))  # type: ignore[arg-type]
    assert context(replace(bench)) == context(bench) != context(judged)
    paint("another", CORE[0]).resize((64, 64)).save(bench.corpus.train[0].path)
    repainted = context(bench)
    changed = replace(bench.corpus, train=[replace(bench.corpus.train[0], captions=("x",)), *bench.corpus.train[1:]])
    assert len({str(one) for one in (repainted, context(judged), context(replace(bench, corpus=changed)))}) == 3


def test_pairs_of_untrained_concepts_are_excluded(folder: Path) -> None:
    metadata = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row["concept"] != "thing 7"]
    metadata.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    corpus = corpus_of(folder)
    taught = {picture.concept for picture in corpus.train}
    pairs = [*corpus.validation, *corpus.test]
    assert len(pairs) == 39 and {picture.concept for picture in pairs} <= taught and len(corpus.whole) == 4


def test_disk_errors_are_one_line(
    opened: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "features.safetensors")

    monkeypatch.setattr(judges, "save_file", refuse)
    words = [opened, "--groups", "food", "--model", model_folder, "-o", tmp_path / "n.png"]
    assert call(copying, monkeypatch, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "Read-only file system: 'features.safetensors'; check the path" in error


def test_seen_keeps_the_order() -> None:
    batches = [torch.full((2, 3, 8, 8), v, dtype=torch.uint8) for v in (0, 255)]
    seen: Seen = look(batches, NETWORK)
    assert seen.features[:, 0].tolist() == [0, 0, 1, 1] and seen.image is None
    assert Picture(Path("x"), "a", "noto", ("a, noto style", "a, noto style", "a")).asking("English") == [
        "a, noto style"
    ]


def test_similarity_of_equal_and_of_unrelated_pictures(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder)
    tokenizer = small_tokenizer()
    torch.manual_seed(1)  # the model's own weights come from 0

    def clip(encoder: Any) -> Any:
        return Namespace(model=Namespace(text_model=encoder.text_model))

    assert weight_similarity(clip(pipe.text.encoders[0]), pipe) == pytest.approx(1)
    assert "is biased" in judge_bias(clip(pipe.text.encoders[0]), pipe)
    assert abs(weight_similarity(clip(small_text_encoder(tokenizer)), pipe)) < 0.1
    assert weight_similarity(clip(small_text_encoder(tokenizer, hidden_size=16)), pipe) == 0
