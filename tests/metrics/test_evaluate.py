"""Evaluation of folders and of models: values, output files and errors."""

import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentdiff import cli
from latentdiff.checkpoints.folder import GENERATION
from latentdiff.metrics import features
from latentdiff.metrics.features import FeatureNetwork

Run = Callable[..., int]
OPTIONS = ["--features", "means", "--resamples", 5]
COLOURS = ["red", "green", "blue"]


def means(pixels: Tensor) -> dict[str, Tensor]:
    """Mean colours of the quarters as features, and of the complete picture as classes."""
    quarters = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 2).flatten(1)
    return {"features": quarters / 255, "logits": pixels.float().mean((2, 3)) / 50}


def broken(pixels: Tensor) -> dict[str, Tensor]:
    return {"features": means(pixels)["features"] * float("nan")}


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, embed, classes in (("means", means, True), ("broken", broken, False)):
        network = FeatureNetwork(name, "none", classes, embed)
        monkeypatch.setitem(features.NETWORKS, name, lambda weights, device, network=network: network)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["latentdiff", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        return int(stopped.value.code or 0)

    return run


def pictures(folder: Path, count: int, seed: int, size: int = 32, captions: bool = True) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(count):
        pixels = rng.integers(0, 90, (size, size, 3))
        pixels[..., k % 3] += 160
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k:02}.png")
        if captions:
            (folder / f"{k:02}.txt").write_text(f"a {COLOURS[k % 3]} <picture>")
    return folder


def test_two_folders_are_compared(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = pictures(tmp_path / "a", 20, 1), pictures(tmp_path / "b", 26, 2, size=48)
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert run("--generated", first, "--real", second, *OPTIONS, "--seed", 3, "-o", out, "--html", page) == 0
    found = json.loads(out.read_text())
    assert found["generated"] == {"path": str(first), "count": 20} and found["real"]["count"] == 26
    assert found["resolution"] == 32 and found["seed"] == 3 and found["interval"]["resamples"] == 5
    assert found["features"] == {"name": "means", "weights": "none", "dimensions": 12}
    assert list(found["values"]) == [
        "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "class_score",
        "class_score_real", "sliced_wasserstein", "sliced_wasserstein_16", "sliced_wasserstein_32",
    ]  # fmt: skip
    distance = found["values"]["frechet_distance"]
    assert distance["label"] == "Frechet distance" and distance["low"] < distance["value"] < distance["high"]
    printed = capsys.readouterr().out
    assert "FID" not in printed + out.read_text() and "features: means" in printed
    html = page.read_text()
    assert html.count("data:image/jpeg") == 40 and "a red &lt;picture&gt;" in html
    assert "http" not in html and len(html) < 300_000


def as_shards(folder: Path) -> str:
    for k, files in enumerate((sorted(folder.iterdir())[:26], sorted(folder.iterdir())[26:])):
        with tarfile.open(folder.parent / f"s{k}.tar", "w") as tar:
            for file in files:
                tar.add(file, file.name)
    return str(folder.parent / "s{0..1}.tar")


def as_parquet(folder: Path) -> str:
    images = sorted(folder.glob("*.png"))
    columns = {"image": [{"bytes": image.read_bytes(), "path": image.name} for image in images]}
    module = pytest.importorskip("pyarrow.parquet")
    module.write_table(pytest.importorskip("pyarrow").table(columns), folder.parent / "x.parquet")
    return str(folder.parent / "x.parquet")


@pytest.mark.parametrize("pack", [as_shards, as_parquet])
def test_every_source_of_pictures_is_opened(
    pack: Callable[[Path], str], tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pictures(tmp_path / "a", 20, 1), pictures(tmp_path / "b", 26, 2)
    values = []
    for real in (second, pack(second)):
        metrics = ["--metrics", "frechet,kernel", "-o", tmp_path / "out.json"]
        assert run("--generated", first, "--real", real, *OPTIONS, *metrics) == 0
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["real"] == {"path": str(real), "count": 26}
        values.append(found["values"])
    assert values[0] == values[1]
    capsys.readouterr()
    assert run("--generated", first, "--real", "gopher://x/a.tar", *OPTIONS) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_smallest_generated_picture_sets_the_size_and_other_sizes_are_noted(tmp_path: Path, run: Run) -> None:
    first, second, out = pictures(tmp_path / "a", 20, 1), pictures(tmp_path / "b", 20, 2), tmp_path / "out.json"
    for folder, sizes in ((first, (48, 40)), (second, (20, 33))):
        for k, side in enumerate(sizes):
            Image.effect_noise((side, side + 9), 50).convert("RGB").save(folder / f"{k:02}.png")
    assert run("--generated", first, "--real", second, *OPTIONS, "-o", out) == 0
    found = json.loads(out.read_text())
    assert found["resolution"] == 32
    assert found["notes"] == [
        f"2 of 20 pictures in {first} are larger than 32 pixels and were reduced, others were not",
        f"1 of 20 pictures in {second} are smaller than 32 pixels and were enlarged; remove them",
        f"1 of 20 pictures in {second} are larger than 32 pixels and were reduced, others were not",
    ]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    first, second = pictures(tmp_path / "a", 20, 1), pictures(tmp_path / "b", 20, 2)
    outs = [tmp_path / f"{k}.json" for k in range(3)]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        assert run("--generated", first, "--real", second, *OPTIONS, "--seed", seed, "-o", out) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    same, other = (json.loads(outs[k].read_text())["values"] for k in (1, 2))
    assert same["sliced_wasserstein"]["value"] != other["sliced_wasserstein"]["value"]  # other patches
    assert same["frechet_distance"]["value"] == other["frechet_distance"]["value"]
    assert same["frechet_distance"]["std"] != other["frechet_distance"]["std"]  # other halves


def test_small_pictures_have_all_metrics_except_textures(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture
) -> None:
    folder, out = pictures(tmp_path / "a", 20, 1, size=8), tmp_path / "out.json"
    assert run("--generated", folder, "--real", folder, *OPTIONS, "-o", out) == 0
    found = json.loads(out.read_text())["values"]
    assert "frechet_distance" in found and "sliced_wasserstein" not in found
    assert run("--generated", folder, "--real", folder, *OPTIONS, "--metrics", "sliced-wasserstein") == 2
    assert "needs pictures of 16 pixels or more; use larger ones" in capsys.readouterr().err


def test_textures_need_no_network(tmp_path: Path, run: Run) -> None:
    folder, out = pictures(tmp_path / "a", 4, 1), tmp_path / "out.json"
    options = ["--metrics", "sliced-wasserstein", "--features", "clip", "--resamples", 2]
    assert run("--generated", folder, "--real", folder, *options, "-o", out) == 0
    assert json.loads(out.read_text())["features"] is None


def test_pictures_are_compared_with_themselves(tmp_path: Path, run: Run) -> None:
    folder, out = pictures(tmp_path / "a", 20, 1), tmp_path / "out.json"
    assert run("--generated", folder, "--real", folder, *OPTIONS, "-o", out) == 0
    values = {key: one["value"] for key, one in json.loads(out.read_text())["values"].items()}
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-9) and values["sliced_wasserstein"] == 0
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert values["class_score"] == values["class_score_real"]


def test_a_model_is_compared_with_held_out_pictures(
    tmp_path: Path, run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentdiff.cli import evaluate as verb

    class Judge:
        weights = "a judge"

        def embed_images(self, pixels: Tensor) -> Tensor:
            return pixels.float().mean((2, 3)) - 130

        def embed_text(self, texts: list[str]) -> Tensor:
            return torch.tensor([[float(colour in text) for colour in COLOURS] for text in texts]) - 1 / 3

    monkeypatch.setattr(verb, "_judge", lambda request: Judge())
    real, out, page = pictures(tmp_path / "real", 20, 1), tmp_path / "out.json", tmp_path / "out.html"
    options = ["--model", model_folder, "--real", real, "--num", 14, "--steps", 1, "--guidance-scale", 2, *OPTIONS]
    assert run(*options, "-o", out, "--html", page) == 0
    found = json.loads(out.read_text())
    assert found["generated"] | {"model_hash": ""} == {
        "model": str(model_folder), "model_hash": "", "count": 14, "num_inference_steps": 1, "guidance_scale": 2.0,
        "sampler": "ddim", "seed": 0,
    }  # fmt: skip
    assert found["real"]["count"] == 14 and found["resolution"] == 16 and found["judge"] == "a judge"
    values = {key: one["value"] for key, one in found["values"].items()}
    assert found["values"]["retrieval_r1_real"]["std"] == 0  # each picture's rank is among all, in each half too
    assert values["retrieval_r1_real"] == 1 and values["alignment_real"] > 0.9 > values["alignment"]
    again = tmp_path / "again.json"
    assert run(*options, "-o", again) == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_call_uses_the_settings_stored_in_the_model(tmp_path: Path, run: Run, model_folder: Path) -> None:
    folder, out = shutil.copytree(model_folder, tmp_path / "model"), tmp_path / "out.json"
    (folder / GENERATION).write_text('{"num_inference_steps": 1, "guidance_scale": 2.0, "sampler": "ddpm"}')
    real = pictures(tmp_path / "real", 20, 1)
    assert run("--model", folder, "--real", real, "--num", 14, "--guidance-scale", 3, *OPTIONS, "-o", out) == 0
    found = json.loads(out.read_text())["generated"]
    assert (found["num_inference_steps"], found["guidance_scale"], found["sampler"]) == (1, 3.0, "ddpm")


BAD = {
    "metric": (["--metrics", "frechet,kernal"], "metric 'kernal' is unknown; did you mean 'kernel'?"),
    "features": (["--features", "mean"], "features='mean' is unknown; did you mean 'means'?"),
    "weights": (["--weights", "clip.pt"], "--weights clip.pt requires --features clip; add it"),
    "unused judge": (["--metrics", "frechet", "--judge", "x"], "judge='x' is used by none of the metrics; add"),
    "judge": (["--metrics", "retrieval"], "metric 'retrieval' needs a judge; pass a CLIP model"),
    "classes": (["--features", "broken", "--metrics", "class-score"], "'class-score' needs a network that names"),
    "nan": (["--features", "broken"], "generated: features are not finite"),
    "resamples": (["--resamples", 1], "resamples=1 must be at least 2"),
    "model option": (["--steps", 3], "--steps applies to a model and cannot be combined with --generated"),
    "seed": (["--seed", -1], "--seed -1 must be from 0"),
    "real": (["--real", "nowhere"], "nowhere does not exist"),
    "place": (["-o", "nowhere/x.json"], "the folder nowhere does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_line_and_leave_no_files(
    name: str, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "a", 12, 1)
    options, message = BAD[name]
    out, page = tmp_path / "o.json", tmp_path / "o.html"
    assert run("--generated", folder, "--real", folder, *OPTIONS, "-o", out, "--html", page, *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1 and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_too_few_pictures_and_too_few_captions(
    tmp_path: Path, run: Run, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, bare = pictures(tmp_path / "few", 5, 1), pictures(tmp_path / "bare", 14, 1, captions=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (["--generated", few, "--real", bare], "precision-recall needs 8 pictures of each kind; there are 5 generated"),
        (["--generated", empty, "--real", bare], "empty contains no pictures"),
        (["--generated", bare, "--real", empty], "empty contains no pictures"),
        (["--model", model_folder, "--real", bare], "00.png has no caption"),
        (["--model", model_folder, "--real", few, "--num", 6], "num=6 must be from 1 to 5"),
        (["--generated", few, "--model", model_folder, "--real", bare], "--model applies to a model"),
    ]
    for options, message in cases:
        assert run(*options, *OPTIONS) == 2
        assert message in capsys.readouterr().err
