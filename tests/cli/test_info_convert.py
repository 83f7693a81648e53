"""`latentdiff info` and `latentdiff convert`, and their one-line errors."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from latentdiff.checkpoints.components import read_pipeline
from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.cli import main
from latentdiff.cli.options import parse_lora
from latentdiff.errors import InputError
from latentdiff.training.lora import add_lora


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in `tmp_path`; returns exit code, standard output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latentdiff", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_other_files_are_named(run: Any, model_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("info", model_folder / "unet")
    assert code == 0 and f"{model_folder / 'unet'}: a U-Net" in out and "unet: 0." in out
    save_file({}, tmp_path / "none.safetensors")
    shutil.copy(next((model_folder / "unet").glob("*.safetensors")), tmp_path / "unet.safetensors")
    generate = ["generate", "x", "-o", tmp_path / "x.png", "--model"]
    for words, message in (
        (["info", tmp_path / "none.safetensors"], "contains no tensors; download it again"),
        ([*generate, model_folder / "unet"], "is a U-Net, not a model; pass it by --unet"),
        ([*generate, model_folder / "text_encoder"], "is a text encoder, not a model; give the whole model"),
        ([*generate, model_folder, "--lora", tmp_path / "unet.safetensors"], "is a U-Net, not a LoRA"),
        ([*generate, model_folder, "--lora", "C:\\a.safetensors"], "a.safetensors does not exist; give a LoRA file"),
        (["convert", model_folder, tmp_path], f"{tmp_path} exists; choose a new folder"),
    ):
        code, _, error = run(*words)
        assert code == 2 and message in error and error.count("\n") == 1


def test_options_for_opening_a_model_are_errors_for_other_files(run: Any, model_folder: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "mycat.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    vae = next((model_folder / "vae").glob("*.safetensors"))
    for words, message in (
        (["mycat.safetensors", "--variant", "fp16"], "variant='fp16' has no effect: mycat.safetensors is an embedding"),
        (["x.png", "--variant", "y"], "variant='y' has no effect: x.png is an image; omit it"),
        ([vae, "--prediction-type", "epsilon"], f"prediction_type='epsilon' has no effect: {vae} is a VAE; omit it"),
        ([model_folder / "unet", "--prediction-type", "sample"], "prediction_type='sample' has no effect: "),
    ):
        code, _, error = run("info", *words)
        assert code == 2 and message in error and error.count("\n") == 1
    assert run("info", model_folder / "unet", "--variant", "fp16")[2].count("choose another variant, or omit it") == 1


def test_info_describes_a_model(run: Any, model_folder: Path) -> None:
    code, out, _ = run("info", model_folder)
    assert code == 0 and "a model in the layout of Stable Diffusion 1" in out
    assert "parameters in F32" in out and "prediction type epsilon: by scheduler/scheduler_config.json" in out


def test_info_prints_the_rank_and_trigger_of_a_lora(run: Any, model_folder: Path, tmp_path: Path) -> None:
    parts = read_pipeline(model_folder, torch.float32)
    add_lora(parts, rank=4)
    save_lora(parts, tmp_path, trigger="mycat")
    out = run("info", tmp_path / "kohya.safetensors")[1]
    assert "a LoRA of" in out and "rank: 4; alpha: 4" in out and "base: sd_v1" in out and "trigger words: mycat" in out
    assert "text of width 32" in run("info", tmp_path)[1]


def test_info_describes_embeddings_and_single_networks(run: Any, model_folder: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "mycat.safetensors")
    out = run("info", tmp_path / "mycat.safetensors")[1]
    assert "the learned word 'mycat', 3 vectors of width 768; base: Stable Diffusion 1" in out
    out = run("info", next((model_folder / "vae").glob("*.safetensors")))[1]
    assert "a VAE" in out and "M parameters in F32" in out


def test_info_on_an_unknown_file_is_a_one_line_error(run: Any, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    for name in ("x.txt", "x.safetensors", "gone"):
        code, out, err = run("info", tmp_path / name)
        assert code == 2 and out == "" and err.startswith("error: ") and len(err.splitlines()) == 1


def test_convert_changes_only_the_dtype(run: Any, model_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("convert", model_folder, tmp_path / "half", "--dtype", "float16")
    assert code == 0 and out.splitlines()[-1] == str(tmp_path / "half")
    (before,), (after,) = ([*(folder / "unet").glob("*.safetensors")] for folder in (model_folder, tmp_path / "half"))
    first, second = load_file(before), load_file(after)
    assert all(torch.equal(value.half(), second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.ckpt"], "must end in .safetensors"),
        (["x.safetensors"], "has no single-file layout; use --format diffusers"),
        (["x", "--format", "ckpt"], "--format ckpt is unknown"),
        (["x", "--dtype", "int4"], "--dtype int4 is unknown"),
        (["nowhere/x"], "does not exist; create it first"),
    ],
)
def test_convert_reports_each_error_in_one_line(
    words: list[str], message: str, run: Any, model_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run("convert", model_folder, tmp_path / words[0], *words[1:])
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_lora_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_lora("a.safetensors") == ("a.safetensors", 1.0, 1.0)
    assert parse_lora("a.safetensors:0.8") == ("a.safetensors", 0.8, 0.8)
    assert parse_lora("a.safetensors:0.8:0") == ("a.safetensors", 0.8, 0.0)
    assert parse_lora(r"C:\loras\a.safetensors") == (r"C:\loras\a.safetensors", 1.0, 1.0)
    assert parse_lora(r"C:\loras\a.safetensors:-0.5") == (r"C:\loras\a.safetensors", -0.5, -0.5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").mkdir()
    assert parse_lora("a:2") == ("a:2", 1.0, 1.0) and parse_lora("a:2:0.5") == ("a:2", 0.5, 0.5)
    for wrong in ("a:nan", "a:1e9"):
        with pytest.raises(InputError, match="must be FILE, FILE:"):
            parse_lora(wrong)
