"""Training, small: every task learns, an interrupted run goes on as if it had not been, models come out usable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPModel, CLIPTokenizer

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoint import read_vae
from latentdiff.config.train import OptimConfig, train_config
from latentdiff.errors import NonFiniteError
from latentdiff.training import loop
from latentdiff.training.denoiser import draw_timesteps
from latentdiff.training.loop import learning_rate
from latentdiff.training.run import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs and squares of four colours."""
    path = tmp_path_factory.mktemp("pictures")
    rows = []
    for name, colour in COLOURS.items():
        for shape in ("disc", "square"):
            for k in range(2):
                image = Image.new("RGB", (16, 16), "white")
                draw = ImageDraw.Draw(image)
                (draw.ellipse if shape == "disc" else draw.rectangle)((2 + k, 2, 13, 12 + k), fill=colour)
                image.save(path / f"{name}-{shape}-{k}.png")
                rows.append({"file_name": f"{name}-{shape}-{k}.png", "text": f"a {name} {shape}"})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def base(folder: Path, output: Path, **optim: Any) -> dict[str, Any]:
    return {
        "data": {"train": str(folder), "held_out": str(folder), "resolution": 16, "batch_size": 8},
        "optim": {"learning_rate": 3e-3, "warmup_steps": 2, "max_steps": 30, "ema_decay": 0.9} | optim,
        "run": {
            "output": str(output), "mixed_precision": "no", "log_every": 1, "sample_every": 1000, "checkpoint_every": 5,
        },
    }  # fmt: skip


def vae_config(folder: Path, output: Path, **optim: Any) -> dict[str, Any]:
    model = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16}
    return base(folder, output, **optim) | {"task": "vae", "model": model}


def text_config(folder: Path, output: Path, **optim: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 540, "max_length": 16, "hidden_size": 32, "layers": 1, "heads": 2, "projection_dim": 16}
    return base(folder, output, **optim) | {"task": "text_encoder", "image_layers": 1, "patch_size": 8} | sizes


@pytest.fixture(scope="module")
def frozen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE and a text encoder, hardly trained."""
    path = tmp_path_factory.mktemp("frozen")
    for name, config in (("vae", vae_config), ("text", text_config)):
        train(train_config.validate_python(config(folder, path / name, max_steps=2)))
    return path


@pytest.fixture
def unet_config(folder: Path, frozen: Path) -> Callable[..., dict[str, Any]]:
    def make(output: Path, **optim: Any) -> dict[str, Any]:
        model = {
            "sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "cross_attention_dim": 32,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "num_attention_heads": [2, 4],
        }  # fmt: skip
        schedule = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return base(folder, output, **optim) | {
            "task": "unet", "vae": str(frozen / "vae" / "model"), "text_encoder": str(frozen / "text" / "model"),
            "model": model, "schedule": schedule, "sample_prompts": ["a red disc", "a blue square"], "sample_steps": 2,
        }  # fmt: skip

    return make


def run(config: dict[str, Any]) -> list[dict[str, Any]]:
    checked = train_config.validate_python(config)
    train(checked)
    lines = (checked.run.output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


def test_the_vae_learns_and_its_folder_opens(folder: Path, tmp_path: Path) -> None:
    lines = run(vae_config(folder, tmp_path / "runs" / "first", max_steps=40))
    found = losses(lines)
    assert sum(found[-5:]) < 0.7 * sum(found[:5])
    assert lines[-1]["psnr"] > 8
    assert (tmp_path / "runs" / "first" / "samples" / "0000040.png").is_file()
    ours, theirs = (
        read(tmp_path / "runs" / "first" / "model") for read in (read_vae, diffusers.AutoencoderKL.from_pretrained)
    )
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(ours.encode(x).mean, theirs.encode(x).latent_dist.mean, atol=1e-5)
    assert ours.config.scaling_factor == theirs.config.scaling_factor != 0.18215


def test_the_patch_critic_takes_part_when_its_time_has_come(folder: Path, tmp_path: Path) -> None:
    config = vae_config(folder, tmp_path / "run", max_steps=4) | {"adversarial_weight": 0.1, "adversarial_start": 2}
    lines = [line for line in run(config) if "loss" in line]
    assert [("critic" in line) for line in lines] == [False, False, True, True]


def test_the_text_encoder_learns_and_its_folder_opens(folder: Path, tmp_path: Path) -> None:
    found = run(text_config(folder, tmp_path / "run", max_steps=60))
    assert sum(losses(found)[-5:]) < 0.9 * sum(losses(found)[:5])
    assert found[-1]["recall_5"] >= found[-1]["recall_1"]
    model = tmp_path / "run" / "model"
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    assert tokenizer("a red disc").input_ids[0] == tokenizer.bos_token_id
    assert CLIPModel.from_pretrained(model / "clip").config.text_config.vocab_size == len(tokenizer)


def test_the_denoiser_learns_and_its_folder_makes_pictures(
    unet_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = run(unet_config(tmp_path / "run", max_steps=60))
    assert sum(losses(found)[-10:]) < 0.9 * sum(losses(found)[:10])
    assert found[-1]["held_out_loss"] > 0
    pipe = LatentDiffusionPipeline.from_pretrained(tmp_path / "run" / "model", device="cpu")
    image = pipe("a red disc", num_inference_steps=2, seed=0).images[0]
    assert image.size == (16, 16)
    assert diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model") is not None


def test_only_the_unet_is_trained(unet_config: Callable[..., dict[str, Any]], frozen: Path, tmp_path: Path) -> None:
    run(unet_config(tmp_path / "run", max_steps=3))
    for part, source in (
        ("vae", frozen / "vae" / "model"),
        ("text_encoder", frozen / "text" / "model" / "text_encoder"),
    ):
        name = "diffusion_pytorch_model.safetensors" if part == "vae" else "model.safetensors"
        assert (tmp_path / "run" / "model" / part / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    unet_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    def config(name: str) -> dict[str, Any]:
        made = unet_config(tmp_path / name, max_steps=10)
        made["run"]["gradient_accumulation_steps"] = accumulation
        return made

    whole = losses(run(config("whole")))
    report = loop._report

    def killed(step: int, *rest: Any) -> None:
        report(step, *rest)
        if step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_report", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config("cut"))
    monkeypatch.undo()
    resumed = losses(run(config("cut")))
    assert resumed[7:] == whole[5:]
    weights = [tmp_path / name / "model" / "unet" / "diffusion_pytorch_model.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_loss_that_is_no_number_stops_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"lower optim.learning_rate"):
        run(vae_config(folder, tmp_path / "run", learning_rate=1e9, warmup_steps=0))


def test_learning_rate_warms_up_and_falls_by_a_cosine() -> None:
    optim = OptimConfig(learning_rate=1.0, final_learning_rate=0.2, warmup_steps=4, max_steps=14)
    rates = [learning_rate(step, optim) for step in range(15)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[9] == pytest.approx(0.6)
    assert rates[14] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_timesteps_cover_the_range_evenly() -> None:
    assert torch.equal(draw_timesteps(50, 1000, 1.0) // 20, torch.arange(50))
    assert draw_timesteps(2000, 1000, 1.0).max() == 999


def test_timesteps_lean_towards_noise_by_their_power() -> None:
    drawn = draw_timesteps(100_000, 1000, 2.0)
    for share in (0.1, 0.5, 0.9):
        assert (drawn < 1000 * share).float().mean().item() == pytest.approx(share**2, abs=1e-3)
