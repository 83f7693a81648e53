"""`latentdiff finetune`, from a folder to a picture."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from latentdiff import cli
from latentdiff.checkpoints.components import read_pipeline
from latentdiff.checkpoints.lora_reader import FILE
from latentdiff.errors import InputError
from latentdiff.training.build_task import finetune_task
from latentdiff.training.finetune import plan_finetune, resumed_config
from latentdiff.training.frozen import weights_of
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.samples import read_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    for k in range(4):
        Image.effect_noise((20, 16), 20 + 20 * k).convert("RGB").save(path / f"grey noise {k}.png")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latentdiff", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        sys.exit(0)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_from_a_folder_to_a_picture(
    method: str, folder: Path, model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "run"
    options = ["--model", model_folder, "--method", method, "--steps", 4, "--trigger", "sks"]
    assert run(monkeypatch, "finetune", folder, "-o", output, *options) == 0
    text = capsys.readouterr().out
    assert "4 pictures from file names" in text and f"{method} on {model_folder}" in text and "4 steps of 4" in text
    use = ["--model", output / "model"] if method == "full" else ["--model", model_folder, "--lora", output]
    assert (output / "model" / FILE).is_file() == (method != "full")
    pictures = []
    for name, words in (("plain", ["--model", model_folder]), ("taught", use)):
        picture = tmp_path / f"{name}.png"
        assert run(monkeypatch, "generate", "sks", *words, "--seed", 1, "--steps", 2, "-o", picture) == 0
        pictures.append(np.asarray(Image.open(picture)).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() > 0
    again = tmp_path / "again.png"
    assert run(monkeypatch, "generate", "--from-image", tmp_path / "taught.png", "-o", again) == 0
    assert np.array_equal(np.asarray(Image.open(again)), pictures[1])


def test_a_full_fine_tune_changes_only_the_unet(
    folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", model_folder, "--method", "full", "--steps", 3]
    assert run(monkeypatch, "finetune", folder, "-o", tmp_path / "run", *options) == 0
    before, after = (read_pipeline(path, torch.float32) for path in (model_folder, tmp_path / "run" / "model"))
    for part in ("denoiser", "vae", "text"):
        pairs = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (part != "denoiser")


def test_the_run_can_be_resumed_from_its_own_config(
    folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "finetune", folder, "-o", tmp_path / "run", "--model", model_folder, "--steps", 2) == 0
    first = (tmp_path / "run" / "model" / FILE).read_bytes()
    assert run(monkeypatch, "train", tmp_path / "run" / "config.yaml", "--set", "optim.max_steps=4", "--resume") == 0
    assert (tmp_path / "run" / "model" / FILE).read_bytes() != first


def test_a_resumed_finetune_keeps_its_plan(
    folder: Path, model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "run"
    command = ["finetune", folder, "-o", output, "--model", model_folder, "--trigger", "sks", "--rank", 3]
    assert run(monkeypatch, *command, "--steps", 2) == 0
    plan = (output / "config.yaml").read_text()
    first = load_file(output / "model" / FILE)
    assert run(monkeypatch, "finetune", folder, "-o", output, "--rank", 4, "--resume") == 2
    assert (
        f"--rank 4 differs from 3, which {output} was started with; omit it, or use another -o"
        in capsys.readouterr().err
    )
    assert run(monkeypatch, "finetune", folder, "-o", output, "--steps", 4, "--resume") == 0
    assert 'latentdiff generate "sks"' in capsys.readouterr().out
    assert (output / "config.yaml").read_text() == plan.replace("max_steps: 2", "max_steps: 4")
    second = load_file(output / "model" / FILE)
    assert first.keys() == second.keys() and any(not torch.equal(first[key], second[key]) for key in first)
    assert run(monkeypatch, *command, "--steps", 5, "--resume") == 0


def test_options_of_opening_the_model_are_compared_one_by_one_when_a_run_is_resumed(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    run_folder = RunFolder(tmp_path / "run")
    opening = {"prediction_type": "epsilon", "allow_pickle": True}
    plan = plan_finetune(folder, run_folder, str(model_folder), base_options=opening, mixed_precision="no")
    run_folder.path.mkdir()
    run_folder.config.write_text(yaml.safe_dump(plan.config.model_dump(mode="json")))
    for given in ({}, {"prediction_type": "epsilon"}, opening):
        resumed = resumed_config(folder, run_folder, base_options=given, mixed_precision="auto")
        assert (resumed.base_options, resumed.run) == (plan.config.base_options, plan.config.run)
    with pytest.raises(InputError, match=r"--variant fp16 differs from none, which .* was started with"):
        resumed_config(folder, run_folder, base_options={"variant": "fp16"})


def test_the_command_that_lists_the_findings_has_the_options_of_the_plan(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes").mkdir()
    folder = folder.rename(tmp_path / "classes" / "grey").parent
    (folder / "grey" / "grey noise 1.png").write_bytes(b"broken")
    given = {"allow_upscale": 1.5, "base_options": {"allow_pickle": True, "prediction_type": "epsilon"}}
    plan = plan_finetune(
        folder, RunFolder(tmp_path / "run"), str(model_folder), trigger="sks", caption_template="a {name}",
        skip_bad=True, **given,
    )  # fmt: skip
    assert plan.command == shlex.join([
        "latentdiff", "data", "check", str(folder), "--model", str(model_folder), "--trigger", "sks", "--resolution",
        "16", "--caption-template", "a {name}", "--allow-upscale", "1.5", "--prediction-type", "epsilon",
        "--allow-pickle",
    ])  # fmt: skip


def test_a_run_whose_folder_was_moved_can_be_resumed(
    folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", model_folder, "--mixed-precision", "no", "--steps", 2]
    assert run(monkeypatch, "finetune", folder, "-o", tmp_path / "run", *options) == 0
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert run(monkeypatch, "finetune", folder, "-o", moved, "--steps", 3, "--resume") == 0
    assert (moved / "checkpoints" / "step-00000003").is_dir()
    assert not (tmp_path / "run").exists()


def test_samples_are_of_the_folder_and_of_other_prompts_before_and_after(
    folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["-o", tmp_path / "run", "--model", model_folder, "--trigger", "sks", "--steps", 2]
    assert run(monkeypatch, "finetune", folder, *options) == 0
    names = [f"{step:07d}.png" for step in range(3)]
    samples = [read_samples(tmp_path / "run" / "samples" / name) for name in names]
    assert samples[0].captions == samples[2].captions == ["sks, grey noise", "sks, a red apple", "sks, a cat"]
    pixels = [np.stack([np.asarray(image) for image in one.images()]).astype(int) for one in samples]
    assert pixels[0].shape == (3, 16, 16, 3) and np.abs(pixels[0] - pixels[2]).max() > 0
    assert read_samples(tmp_path / "run" / "data.png").captions == ["sks, grey noise"] * 4


def test_a_short_run_logs_its_losses(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    for steps, every in ((8, 1), (50, 5), (500, 10)):
        plan = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), steps=steps)
        assert plan.config.run.log_every == every


def test_bad_pictures_are_refused_or_skipped(
    folder: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "grey noise 1.png").write_bytes(b"broken")
    options = ["-o", tmp_path / "run", "--model", model_folder, "--steps", 2]
    assert run(monkeypatch, "finetune", folder, *options) == 2
    assert "1 of 4 pictures cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(monkeypatch, "finetune", folder, *options, "--skip-bad") == 0
    assert "1 skipped" in capsys.readouterr().out


def test_defaults_depend_on_the_folder_and_given_options_are_kept(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    plan = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder))
    assert (plan.config.data.batch_size, plan.config.optim.max_steps, plan.config.data.resolution) == (4, 100, 16)
    given = plan_finetune(
        folder, RunFolder(tmp_path / "run"), str(model_folder), "full", batch_size=2, steps=7, learning_rate=0.5
    )
    assert (given.config.data.batch_size, given.config.optim.max_steps, given.config.optim.learning_rate) == (2, 7, 0.5)
    large = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), resolution=768, allow_upscale=50.0)
    assert large.config.run.gradient_checkpointing and not plan.config.run.gradient_checkpointing
    assert (plan.config.optim.learning_rate, large.config.optim.learning_rate) == (6e-4, 1e-4)
    with pytest.raises(InputError, match=r"method='lroa'"):
        plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), "lroa")


@pytest.mark.parametrize(("multiplies", "precision"), [(True, "bf16"), (False, "no")])
def test_the_precision_is_bf16_where_the_processor_multiplies_it(
    multiplies: bool, precision: str, folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentdiff.runtime.device.cpu_has", lambda name: multiplies)
    for given in ({}, {"mixed_precision": "auto"}):
        plan = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), **given)
        assert plan.config.run.mixed_precision == precision


def test_a_step_is_divided_by_accumulation_and_the_plan_says_so(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    options = {"gradient_accumulation": 2, "mixed_precision": "no", "caption_dropout": 0.25, "resolution": 12}
    plan = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), batch_size=4, **options)
    config = plan.config
    assert (config.data.batch_size, config.run.gradient_accumulation_steps, config.data.resolution) == (2, 2, 12)
    assert (config.run.mixed_precision, config.caption_dropout) == ("no", 0.25)
    text = plan.summary()
    assert "12 px" in text and "of 4 (2 batches of 2)" in text and "precision no, caption dropout 0.25" in text
    assert replace(plan, processes=3)._pictures_per_step() == "12 (3 processes of 2 batches of 2)"
    with pytest.raises(InputError, match=r"--batch-size 5 must be a multiple of .*, 2; try 4"):
        plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), batch_size=5, **options)


def test_no_captions_are_needed_with_a_trigger(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IMG_{k}.png")
    with pytest.raises(InputError, match="no caption"):
        plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder))
    plan = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), trigger="sks style")
    assert plan.config.data.prefix == "sks style" and plan.config.data.skip == ()


@pytest.mark.parametrize("name", ["steps", "batch_size", "learning_rate", "rank"])
def test_given_options_are_not_replaced(name: str, folder: Path, model_folder: Path, tmp_path: Path) -> None:
    for value in (0, -1):
        with pytest.raises(InputError, match=rf"{'max_steps' if name == 'steps' else name}={value}"):
            plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), **{name: value})


def test_files_that_do_not_belong_to_a_run_are_not_touched(
    folder: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "precious").write_text("x")
    options = ["-o", tmp_path / "mine", "--model", model_folder, "--steps", 1]
    assert run(monkeypatch, "finetune", folder, *options) == 2
    assert "mine contains model, which is not part of a run; use a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["model", "precious"]


def test_a_run_with_no_picture_left_is_refused(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"no picture of .* can be used; see latentdiff data check"):
        plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), skip_bad=True)


def test_frozen_networks_take_no_memory_between_evaluations(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    plan = plan_finetune(
        folder, RunFolder(tmp_path / "run"), str(model_folder), trigger="noise", steps=2, mixed_precision="no"
    )
    task, base = finetune_task(plan.config, RunFolder(tmp_path / "run")), read_pipeline(model_folder, torch.float32)
    networks = [(task.parts.vae, base.vae), *zip(task.parts.text.encoders, base.text.encoders, strict=True)]

    def bytes_held() -> int:
        return sum(p.untyped_storage().nbytes() for mine, _ in networks for p in mine.parameters())

    weights = sum(1 for mine, _ in networks for _ in mine.parameters())
    assert bytes_held() == 4 * weights
    with weights_of(task.released):
        for mine, theirs in networks:
            assert all(map(torch.equal, mine.state_dict().values(), theirs.state_dict().values()))
    assert bytes_held() == 4 * weights


def test_networks_that_are_saved_with_the_result_are_kept(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    plan = plan_finetune(folder, RunFolder(tmp_path / "run"), str(model_folder), "full", "noise", steps=2)
    assert not finetune_task(plan.config, RunFolder(tmp_path / "run")).released
