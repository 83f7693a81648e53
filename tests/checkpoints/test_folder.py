"""Model folders: supported layouts and errors that name the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from latentdiff.checkpoints.components import open_model, read_pipeline
from latentdiff.checkpoints.folder import WEIGHTS, load_weights
from latentdiff.checkpoints.locate_model import bundled_model, locate
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.errors import CheckpointError
from latentdiff.models.unet import UNet2DConditionModel
from tests.small import read_weights, small_components, small_unet_config


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_written_and_read_again(model_folder: Path) -> None:
    made, read = small_components(), read_pipeline(model_folder, torch.float32)
    assert same(made.denoiser, read.denoiser) and same(made.vae, read.vae) and same(made.text, read.text)
    assert (made.denoiser.config, made.vae.config) == (read.denoiser.config, read.vae.config)
    assert made.schedule.config == read.schedule.config


def test_fp16_variant_of_a_text_encoder(folder: Path) -> None:
    encoder = folder / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "model.fp16.safetensors")
    assert same(read_pipeline(folder, torch.float32).text, small_components().text)


def test_fp16_variant_and_shards(folder: Path) -> None:
    unet = folder / "unet"
    state = load_file(unet / f"{WEIGHTS}.safetensors")
    (unet / f"{WEIGHTS}.safetensors").unlink()
    save_file({k: v.half() for k, v in state.items()}, unet / f"{WEIGHTS}.fp16.safetensors")
    assert torch.allclose(read_weights(unet)["conv_in.weight"].float(), state["conv_in.weight"], atol=1e-3)
    (unet / f"{WEIGHTS}.fp16.safetensors").unlink()
    names = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
    for part in set(names.values()):
        save_file({k: v for k, v in state.items() if names[k] == part}, unet / part)
    (unet / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    shards = read_weights(unet)
    assert shards.keys() == state.keys() and all(torch.equal(shards[key], state[key]) for key in state)


def test_attention_names_of_2022_are_read(folder: Path) -> None:
    path = folder / "vae" / f"{WEIGHTS}.safetensors"
    state, before = load_file(path), read_pipeline(folder, torch.float32).vae
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in state.items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        renamed[key] = value
    assert renamed.keys() != state.keys()
    save_file(renamed, path)
    assert same(read_pipeline(folder, torch.float32).vae, before)


def test_diffusers_own_folder_is_read(tmp_path: Path, model_folder: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    theirs.scheduler = diffusers.PNDMScheduler.from_config(theirs.scheduler.config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read_pipeline(tmp_path / "theirs", torch.float32)
    assert same(ours.denoiser, read_pipeline(model_folder, torch.float32).denoiser)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def rewrite(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def only_pickle(folder: Path) -> None:
    (folder / "unet" / f"{WEIGHTS}.safetensors").rename(folder / "unet" / f"{WEIGHTS}.bin")


def other_width(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 48}))


def other_groups(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_linear_projection": True}))


def extra_tensor(folder: Path) -> None:
    path = folder / "vae" / f"{WEIGHTS}.safetensors"
    save_file(load_file(path) | {"surprise": torch.zeros(1)}, path)


def shard_elsewhere(folder: Path) -> None:
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    index = {"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}
    (folder / "unet" / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("model_index.json"), "model_index.json cannot be read .* give a folder that a pipeline was saved to"),
        (remove("unet/config.json"), "unet/config.json cannot be read"),
        (remove(f"unet/{WEIGHTS}.safetensors"), f"unet/{WEIGHTS}.safetensors is missing"),
        (cut(f"unet/{WEIGHTS}.safetensors"), "missing or damaged"),
        (cut("text_encoder/model.safetensors"), "text_encoder/model.safetensors is missing or damaged"),
        (remove("text_encoder/model.safetensors"), "text_encoder/model.safetensors is missing"),
        (remove("text_encoder/config.json"), "text_encoder/config.json cannot be read"),
        (cut("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json is not JSON"),
        (rewrite("vae/config.json", "{"), "is not JSON"),
        (
            rewrite("model_index.json", '{"text_encoder": ["transformers", "T5"]}'),
            r"text_encoder=\['transformers', 'T5'\] is not supported",
        ),
        (only_pickle, "contains only pickles"),
        (other_width, "has 32 numbers per token, the U-Net reads 48"),
        (other_groups, "according to its config.json"),
        (extra_tensor, "unknown tensor surprise"),
        (shard_elsewhere, "a shard outside its folder"),
    ],
)
def test_damaged_files_are_named_in_the_error(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_pipeline(folder, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such model", "does not exist; give a model folder"),
        ("./a/b", "does not exist"),
        ("../b", "does not exist"),
        ("owner/name", "nor an accessible Hugging Face repository"),
    ],
)
def test_folders_without_a_model_are_errors(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        locate(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_only_files_that_are_read_are_downloaded_from_the_hub(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [f"unet/{WEIGHTS}{variant}.safetensors", f"vae/{WEIGHTS}{variant}.safetensors"]
    others = [
        "model.safetensors",
        f"safety_checker/{WEIGHTS}.safetensors",
        *([] if variant else [f"unet/{WEIGHTS}.fp16.safetensors"]),
    ]
    there = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]

    def snapshot(_: str, revision: str | None, local_files_only: bool = False, **patterns: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        for name in filter_repo_objects([*weights, *others, *there], **patterns):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert locate("owner/name") == tmp_path
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*weights, *there}


def test_weights_of_another_config_are_refused(folder: Path) -> None:
    model = UNet2DConditionModel(small_unet_config().model_copy(update={"cross_attention_dim": 16}))
    with pytest.raises(CheckpointError, match=r"according to the run's config; both must belong to the same model"):
        load_weights(model, folder / "unet")


def test_no_name_means_the_bundled_model() -> None:
    assert locate(None) == bundled_model()


def shard(file: Path, variant: str) -> None:
    """Split a safetensors file in two, as diffusers and transformers name the shards of a variant."""
    state, stem, inner = load_file(file), file.name.removesuffix(".safetensors"), f".{variant}" if variant else ""
    names = {key: f"{stem}{inner}-{1 + i % 2:05d}-of-00002.safetensors" for i, key in enumerate(state)}
    for part in set(names.values()):
        save_file({key: value for key, value in state.items() if names[key] == part}, file.parent / part)
    (file.parent / f"{stem}.safetensors.index{inner}.json").write_text(json.dumps({"weight_map": names}))
    file.unlink()


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("variant", ["", "fp16", "non_ema"])
@pytest.mark.parametrize("shards", [False, True])
def test_variants_and_shards_open_in_every_component(component: str, variant: str, shards: bool, folder: Path) -> None:
    (file,) = (folder / component).glob("*.safetensors")
    if shards:
        shard(file, variant)
    elif variant:
        file.rename(file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors")))
    made, read = small_components(), read_pipeline(folder, torch.float32)
    assert same(made.denoiser, read.denoiser) and same(made.vae, read.vae) and same(made.text, read.text)


def test_a_variant_is_chosen_by_name(folder: Path) -> None:
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    changed = {key: value + 1 for key, value in load_file(file).items()}
    save_file(changed, folder / "unet" / f"{WEIGHTS}.ema.safetensors")
    for name in ("vae", "text_encoder"):
        (other,) = (folder / name).glob("*.safetensors")
        shutil.copy(other, other.with_name(other.name.replace(".safetensors", ".ema.safetensors")))
    plain = read_pipeline(folder, torch.float32).denoiser.conv_in.bias
    ema = read_pipeline(open_model(folder, OpenOptions(variant="ema")), torch.float32).denoiser.conv_in.bias
    assert torch.equal(ema, plain + 1)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"x": 3}, {"x": "gone.safetensors"}])
def test_a_damaged_index_is_one_line(weight_map: Any, folder: Path) -> None:
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    (folder / "unet" / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"has no weight_map|is missing or damaged") as caught:
        read_pipeline(folder, torch.float32)
    assert "\n" not in str(caught.value)
