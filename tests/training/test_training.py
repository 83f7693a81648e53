"""Small training runs: every task learns, and its result can be used."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import read_vae
from latentdiff.config.data import DataConfig
from latentdiff.config.train import OptimConfig, train_config
from latentdiff.data.check import DataCheck
from latentdiff.data.dataset import load_pixels, read_rows
from latentdiff.errors import InputError, NonFiniteError
from latentdiff.models.conditioning import Conditioning
from latentdiff.training import train as training_run
from latentdiff.training.autoencoder import AutoencoderModule
from latentdiff.training.denoiser import DenoiserModule, DenoiserTask, elementwise_loss
from latentdiff.training.optimizers import learning_rate
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.train import train
from tests.training.small_runs import Make, losses, run, text_config, vae_config


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
    pixels = torch.stack([load_pixels(row, 16) for row in read_rows(folder, DataConfig(train=folder))])
    with torch.no_grad():
        loss = (ours.decode(ours.encode(pixels).mean).clamp(-1, 1) - pixels).abs().mean().item()
    assert lines[-1]["held_out_loss"] == pytest.approx(loss, rel=1e-4)


def test_the_patch_discriminator_takes_part_from_its_start(folder: Path, tmp_path: Path) -> None:
    config = vae_config(folder, tmp_path / "run", max_steps=4) | {"adversarial_weight": 0.1, "adversarial_start": 2}
    lines = [line for line in run(config) if "loss" in line]
    assert [("critic" in line) for line in lines] == [False, False, True, True]


def test_a_decoder_is_trained_behind_its_frozen_encoder(folder: Path, tmp_path: Path) -> None:
    run(vae_config(folder, tmp_path / "first", max_steps=4))
    config = vae_config(folder, tmp_path / "second", max_steps=4)
    run(config | {"init": str(tmp_path / "first" / "model"), "train_encoder": False})
    first, second = (read_vae(tmp_path / name / "model") for name in ("first", "second"))
    for name, before in first.named_parameters():
        decodes = name.startswith(("decoder", "post_quant_conv"))
        assert torch.equal(before, second.get_parameter(name)) != decodes, name
    assert first.config.scaling_factor == second.config.scaling_factor


def test_the_noise_on_latents_has_the_configured_size(folder: Path, tmp_path: Path) -> None:
    """Uniform up to 0.8 of their deviation: the mean square of the added noise is 0.8^2 / 3 of theirs."""
    batch = {"pixels": torch.rand(64, 3, 16, 16) * 2 - 1, "draw": torch.arange(64)}
    config = vae_config(folder, tmp_path / "run", max_steps=1)
    seen: dict[float, Tensor] = {}
    for noise in (0.0, 0.8):
        torch.manual_seed(0)
        module = AutoencoderModule(train_config.validate_python(config | {"latent_noise": noise})).requires_grad_(False)
        module.vae.post_quant_conv.register_forward_pre_hook(lambda _, x, noise=noise: seen.update({noise: x[0]}))
        module(batch)
    spread = module.vae.encode(batch["pixels"]).mean.flatten(1).std(1)
    added = (seen[0.8] - seen[0.0]).flatten(1).std(1) / spread
    assert added.square().mean().item() == pytest.approx(0.8**2 / 3, rel=0.2) and added.max() < 1.1 * 0.8
    halves = [module({key: value[part] for key, value in batch.items()}) for part in (slice(32), slice(32, None))]
    assert (halves[0]["loss"] + halves[1]["loss"]).item() / 2 == pytest.approx(module(batch)["loss"].item(), rel=1e-4)


def test_the_text_encoder_learns_and_its_folder_opens(folder: Path, tmp_path: Path) -> None:
    found = run(text_config(folder, tmp_path / "run", max_steps=60))
    assert sum(losses(found)[-5:]) < 0.9 * sum(losses(found)[:5])
    assert found[-1]["recall_5"] >= found[-1]["recall_1"]
    model = tmp_path / "run" / "model"
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    assert tokenizer("a red disc").input_ids[0] == tokenizer.bos_token_id
    assert CLIPModel.from_pretrained(model / "clip").config.text_config.vocab_size == len(tokenizer)


def test_the_denoiser_learns_and_its_folder_makes_pictures(unet_config: Make, tmp_path: Path) -> None:
    found = run(unet_config(tmp_path / "run", max_steps=60))
    assert sum(losses(found)[-10:]) < 0.9 * sum(losses(found)[:10])
    pipe = LatentDiffusionPipeline.from_pretrained(tmp_path / "run" / "model", device="cpu", dtype="float32")
    image = pipe("a red disc", num_inference_steps=2, seed=0).images[0]
    assert image.size == (16, 16)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    latents, timestep, hidden = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 16, 32)
    with torch.no_grad():
        found = pipe.denoiser(latents, timestep, Conditioning(hidden))
        assert torch.allclose(found, theirs.unet(latents, timestep, hidden).sample, atol=1e-4)


def test_only_the_unet_is_trained(unet_config: Make, frozen: Path, tmp_path: Path) -> None:
    run(unet_config(tmp_path / "run", max_steps=3))
    for part, source in (
        ("vae", frozen / "vae" / "model"),
        ("text_encoder", frozen / "text" / "model" / "text_encoder"),
    ):
        name = "diffusion_pytorch_model.safetensors" if part == "vae" else "model.safetensors"
        assert (tmp_path / "run" / "model" / part / name).read_bytes() == (source / name).read_bytes()


def test_a_nan_loss_stops_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"lower optim.learning_rate"):
        run(vae_config(folder, tmp_path / "run", learning_rate=1e9, warmup_steps=0))


def test_a_nan_loss_is_detected_before_anything_is_saved(folder: Path, tmp_path: Path) -> None:
    config = vae_config(folder, tmp_path / "run", learning_rate=1e9, warmup_steps=0)
    config["run"] |= {"log_every": 1000, "checkpoint_every": 10}
    with pytest.raises(NonFiniteError, match=r"^the loss is (nan|inf) at step \d;"):
        run(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_vae_needs_no_captions(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for k, path in enumerate(sorted(folder.glob("*.png"))):
        (tmp_path / "pictures" / f"{k}.png").write_bytes(path.read_bytes())
    config = vae_config(tmp_path / "pictures", tmp_path / "run", max_steps=1)
    assert losses(run(config | {"data": config["data"] | {"held_out": str(tmp_path / "pictures")}}))


def test_the_last_step_is_logged(folder: Path, tmp_path: Path) -> None:
    config = vae_config(folder, tmp_path / "run", max_steps=5)
    config["run"]["log_every"] = 4
    assert [line["step"] for line in run(config) if "loss" in line] == [4, 5]


def test_the_tokenizer_is_kept_with_the_run(folder: Path, tmp_path: Path) -> None:
    """An unfinished folder is not read, because it has another name until it is complete."""
    config = text_config(folder, tmp_path / "run", max_steps=1)
    (tmp_path / "run" / "tokenizer.partial").mkdir(parents=True)
    (tmp_path / "run" / "data.json").write_text("{}")
    run(config)
    kept = (tmp_path / "run" / "tokenizer" / "vocab.json").read_bytes()
    config["optim"]["max_steps"] = 2
    run(config, resume=True)
    assert (tmp_path / "run" / "tokenizer" / "vocab.json").read_bytes() == kept
    with pytest.raises(InputError, match=r"max_length=12, but .*tokenizer was trained with 16; keep it"):
        run(config | {"max_length": 12}, resume=True)


@pytest.mark.parametrize("make", [vae_config, text_config])
def test_every_task_has_a_held_out_loss_to_stop_by(make: Make, folder: Path, tmp_path: Path) -> None:
    config = make(folder, tmp_path / "run", learning_rate=1e-30, max_steps=30)
    config["run"] |= {"sample_every": 2, "early_stopping": 2}
    assert run(config)[-1]["step"] == 6


def test_early_stopping_needs_held_out_pictures(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "run")
    del config["data"]["held_out"]
    config["run"]["early_stopping"] = 2
    with pytest.raises(InputError, match=r"has 16 pictures; give 20 or more, or data\.held_out"):
        run(config)


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.6), ("linear", 0.6), ("constant", 1.0)])
def test_learning_rate_warms_up_and_falls(schedule: str, half: float) -> None:
    final = 0.0 if schedule == "constant" else 0.2
    optim = OptimConfig(
        learning_rate=1.0, final_learning_rate=final, warmup_steps=4, max_steps=14, lr_schedule=schedule
    )  # fmt: skip
    rates = [learning_rate(step, optim) for step in range(15)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[9] == pytest.approx(half)
    assert rates[14] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


@pytest.mark.parametrize(
    ("key", "message"),
    [("cross_attention_dim", "must be 32, the hidden size of"), ("in_channels", "must be 4, the latents' channels")],
)
def test_mismatched_widths_are_refused(unet_config: Make, tmp_path: Path, key: str, message: str) -> None:
    config = unet_config(tmp_path / "run", max_steps=1)
    config["model"][key] = 16
    with pytest.raises(InputError, match=message):
        run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 33}, "hidden_size=33 must be a multiple of heads=2"),
        (
            {"run": {"output": "x", "gradient_checkpointing": True}},
            "gradient_checkpointing=True has no effect in task text",
        ),
        (
            {"run": {"output": "x", "compile": True}},
            "compile=True has no effect in task text_encoder, which trains no U-Net",
        ),
        ({"data": {"train": "x", "crop": "random"}}, "data.crop='random' has no effect in task text_encoder, which"),
        ({"run": {"output": "x", "seed": 2**31}}, "less than 2147483648"),
    ],
)
def test_invalid_configs_are_refused_before_the_run(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_config.validate_python(text_config(folder, tmp_path) | changes)


def test_the_text_encoder_is_trained_if_requested(unet_config: Make, frozen: Path, tmp_path: Path) -> None:
    run(unet_config(tmp_path / "run", max_steps=3) | {"train_text_encoder": True})
    name = Path("text_encoder") / "model.safetensors"
    before, after = (load_file(folder / "model" / name) for folder in (frozen / "text", tmp_path / "run"))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"token_embedding", "q_proj", "fc1"} <= {part for key in changed for part in key.split(".")}


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_and_the_files_of_a_plain_one(unet_config: Make, tmp_path: Path) -> None:
    found, weights = [], []
    for compiled in (True, False):
        config = unet_config(tmp_path / str(compiled), max_steps=4)
        config["run"]["compile"] = compiled
        torch._dynamo.utils.counters.clear()
        found.append(losses(run(config)))
        assert bool(torch._dynamo.utils.counters["stats"]["calls_captured"]) == compiled
        weights.append(load_file(tmp_path / str(compiled) / "model/unet/diffusion_pytorch_model.safetensors"))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert weights[0].keys() == weights[1].keys()


def test_prodigy_trains(unet_config: Make, tmp_path: Path) -> None:
    pytest.importorskip("prodigyopt")
    found = losses(run(unet_config(tmp_path / "run", name="prodigy", learning_rate=1.0, max_steps=30)))
    assert sum(found[-10:]) < sum(found[:10])


def test_eight_bit_adamw_is_refused_without_a_gpu(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device; use adamw"):
        run(unet_config(tmp_path / "run", name="adamw_8bit"))


def test_early_stopping_ends_a_run_that_no_longer_improves(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "run", learning_rate=1e-30, max_steps=30)
    config["run"] |= {"sample_every": 2, "early_stopping": 3}
    assert run(config)[-1]["step"] == 8
    assert (tmp_path / "run" / "model" / "unet").is_dir()


def test_a_failed_evaluation_does_not_end_the_run(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room to look")

    monkeypatch.setattr(DenoiserTask, "_draw", fail)
    config = unet_config(tmp_path / "run", max_steps=4)
    config["run"]["sample_every"] = 2
    found = run(config)
    failures = [line["failures"] for line in found if "failures" in line]
    assert failures == [["OutOfMemoryError: no room to look"]] * 2
    assert [line["step"] for line in found if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("auto_batch", [True, False])
def test_out_of_memory_names_the_setting_or_halves_the_batch(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auto_batch: bool
) -> None:
    whole = losses(run(unet_config(tmp_path / "whole", max_steps=12)))
    forward = DenoiserModule.forward
    calls = []

    def small(self: DenoiserModule, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        calls.append(len(batch["caption"]))
        if len(calls) > 7 and len(batch["caption"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(DenoiserModule, "forward", small)
    config = train_config.validate_python(unet_config(tmp_path / "cut", max_steps=12))
    if not auto_batch:
        with pytest.raises(InputError, match=r"set data.batch_size=4 and run.gradient_accumulation_steps=2 .* --auto-"):
            train(config)
        return
    train(config, auto_batch=True)
    found = losses([json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()])
    assert found == pytest.approx(whole, rel=1e-4)
    assert set(calls) == {8, 4}


def test_auto_batch_is_refused_with_several_processes(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "process_state", lambda: SimpleNamespace(num_processes=2, is_main_process=False))
    config = train_config.validate_python(unet_config(tmp_path / "run", max_steps=1))
    with pytest.raises(InputError, match="--auto-batch requires a single process"):
        training_run.train_checked(config, cast(DataCheck, None), RunFolder(tmp_path / "run"), auto_batch=True)
    assert not (tmp_path / "run").exists()


def test_huber_is_the_square_below_and_a_line_beyond() -> None:
    error = torch.tensor([0.1, -0.5, 2.0, -4.0])
    assert torch.allclose(elementwise_loss(error, torch.zeros(4), None), error.square())
    found = elementwise_loss(error, torch.zeros(4), 1.0)
    assert torch.allclose(found, torch.tensor([0.01, 0.25, 3.0, 7.0]))
