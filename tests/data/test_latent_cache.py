"""Encoded pictures: correct moments, crops and captions, and encoding again only what changed."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from latentdiff.config.data import DataConfig
from latentdiff.config.model import IdentityVAEConfig
from latentdiff.data import latent_cache as module
from latentdiff.data.archives import open_container
from latentdiff.data.buckets import RANDOM_CROPS, View, views
from latentdiff.data.captions import choose_caption
from latentdiff.data.dataset import CaptionedImages, load_pixels
from latentdiff.data.latent_cache import LatentImages, encode_rows, fingerprint, load_view
from latentdiff.data.layouts import DataRow
from latentdiff.models.vae import AutoencoderKL, IdentityVAE
from tests.small import small_vae_config

CONFIG = DataConfig(train="pictures", resolution=16)


@pytest.fixture
def rows(tmp_path: Path) -> list[DataRow]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(3):
        Image.effect_noise((16, 16), 60).convert("RGB").save(folder / f"{k}.png")
    return [DataRow(open_container(folder), f"{k}.png", (f"caption {k}",)) for k in range(3)]


@pytest.fixture
def vae() -> AutoencoderKL:
    return AutoencoderKL(small_vae_config()).eval().requires_grad_(False)


def test_moments_equal_the_encoders(vae: AutoencoderKL, rows: list[DataRow], tmp_path: Path) -> None:
    encoded = encode_rows(vae, rows, CONFIG, tmp_path / "cache")
    posterior = vae.encode(load_pixels(rows[1], 16)[None])
    item = LatentImages(rows, encoded, CONFIG)[1, 0]
    assert torch.allclose(item["mean"], posterior.mean[0], atol=1e-2)
    assert torch.allclose(item["std"], (0.5 * posterior.logvar[0]).exp(), atol=1e-2)
    assert (item["caption"], item["draw"]) == ("caption 1", 0)


def test_only_what_changed_is_encoded_again(
    vae: AutoencoderKL, rows: list[DataRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    loaded: list[str] = []

    def counted(row: DataRow, view: View) -> torch.Tensor:
        loaded.append(row.name)
        return load_view(row, view)

    monkeypatch.setattr(module, "load_view", counted)

    def encodes(config: DataConfig = CONFIG) -> list[str]:
        loaded.clear()
        encode_rows(vae, rows, config, cache)
        return loaded

    assert len(encodes()) == 3 and not encodes()
    os.utime(rows[0].where, (1, 1))
    assert not encodes()
    Image.effect_noise((16, 16), 90).convert("RGB").save(rows[0].where)
    assert encodes() == ["0.png"] and not encodes()
    assert len(encodes(CONFIG.model_copy(update={"flip": 0.5}))) == 3
    assert not encodes()
    assert len(encodes(CONFIG.model_copy(update={"resolution": 8}))) == 3
    assert len(encodes(CONFIG.model_copy(update={"background": "black"}))) == 3
    vae.encoder.conv_in.bias += 1
    assert len(encodes()) == 3 and not encodes()
    (shard,) = cache.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-20])
    assert len(encodes()) == 3 and not encodes()


def test_pictures_of_similar_shape_share_a_bucket_and_keep_nine_tenths(vae: AutoencoderKL, tmp_path: Path) -> None:
    sizes = {"a": (32, 32), "b": (60, 33), "c": (20, 60), "d": (34, 60), "e": (64, 35)}
    for name, size in sizes.items():
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{name}.png")
    rows = [DataRow(open_container(tmp_path), f"{name}.png", (name,)) for name in sizes]
    encoded = encode_rows(vae, rows, DataConfig(train=tmp_path, resolution=32), tmp_path / "cache")
    data = LatentImages(rows, encoded, DataConfig(train=tmp_path))
    assert data.buckets[1] == data.buckets[4] and len(set(data.buckets)) == 4
    for (width, height), one in zip(sizes.values(), encoded, strict=True):
        _, h, w = one.cuts[0].shape
        ratio = (width / height) / (w / h)
        assert min(ratio, 1 / ratio) >= 0.9


def test_sides_are_multiples_of_the_given_number(tmp_path: Path) -> None:
    Image.effect_noise((33, 20), 60).convert("RGB").save(tmp_path / "a.png")
    rows, config = [DataRow(open_container(tmp_path), "a.png", ("a",))], DataConfig(train=tmp_path, resolution=16)
    (one,) = encode_rows(IdentityVAE(IdentityVAEConfig()), rows, config, tmp_path / "cache", 4)
    assert one.cuts[0].shape[1] < one.cuts[0].shape[2] and all(side % 4 == 0 for side in one.cuts[0].shape[1:])


def test_flip_mirrors_half_of_the_draws(vae: AutoencoderKL, rows: list[DataRow], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"flip": 0.5})
    encoded = encode_rows(vae, rows, config, tmp_path / "cache")
    data = LatentImages(rows, encoded, config)
    mirrored = vae.encode(load_pixels(rows[0], 16).flip(-1)[None]).mean[0]
    seen = [torch.allclose(data[0, draw]["mean"], mirrored, atol=1e-2) for draw in range(200)]
    assert 60 < sum(seen) < 140


def test_random_crops_are_several_crops_of_one_picture(vae: AutoencoderKL, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((64, 32)).convert("RGB").save(tmp_path / "wide.png")
    rows = [DataRow(open_container(tmp_path), "wide.png", ("wide",))]
    config = DataConfig(train=tmp_path, resolution=16, buckets=False, crop="random")
    (encoded,) = encode_rows(vae, rows, config, tmp_path / "cache")
    assert len(encoded.cuts) == RANDOM_CROPS
    assert encoded.cuts[0].shape == encoded.cuts[1].shape


def test_background_is_the_colour_behind_transparent_pictures(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16)).save(tmp_path / "clear.png")
    row = DataRow(open_container(tmp_path), "clear.png", ("clear",))
    config = DataConfig(train=tmp_path, resolution=16, background="#ff0000")
    (view,) = views((16, 16), (16, 16), config, "")
    for pixels in (load_view(row, view), CaptionedImages([row], config)[0, 0]["pixels"]):
        assert pixels[:, 3, 3].tolist() == [1, -1, -1]


def test_large_pictures_are_encoded_few_at_a_time(
    vae: AutoencoderKL, rows: list[DataRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    encode = AutoencoderKL.encode

    def counted(self: AutoencoderKL, pixels: torch.Tensor) -> Any:
        batches.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(AutoencoderKL, "encode", counted)
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2 * 16 * 16)
    for size in (16, 32):
        encode_rows(vae, rows, CONFIG.model_copy(update={"resolution": size}), tmp_path / "cache")
    assert batches == [2, 1, 1, 1, 1]


def test_shuffling_keeps_the_first_part_of_a_caption() -> None:
    config = DataConfig(train="x", shuffle_captions=True)
    row = DataRow(open_container(Path(__file__).parent), "x.png", ("sks, b, c, d",))
    seen = {choose_caption(row, config, random.Random(k)) for k in range(60)}
    assert len(seen) == 6 and all(caption.startswith("sks, ") for caption in seen)


@pytest.mark.parametrize("comma", [", ", "，"])
def test_parts_of_a_caption_are_dropped_with_the_given_probability(comma: str) -> None:
    config = DataConfig(train="x", tag_dropout=0.25)
    row = DataRow(open_container(Path(__file__).parent), "x.png", (comma.join("abc"),))
    seen = [choose_caption(row, config, random.Random(k)) for k in range(4000)]
    assert set(seen) == {"a", "b", "c"} | {comma.join(pair) for pair in ("ab", "ac", "bc", "abc")}
    for part in "abc":  # where nothing would be left, all is
        assert sum(part in caption for caption in seen) / len(seen) == pytest.approx(0.75 + 0.25**3, abs=0.03)


def test_the_prefix_is_never_dropped_and_parts_keep_their_comma() -> None:
    row = DataRow(open_container(Path(__file__).parent), "x.png", ("sks, 猫，红",))
    config = DataConfig(train="x", prefix="sks", tag_dropout=0.5, shuffle_captions=True)
    seen = {choose_caption(row, config, random.Random(k)) for k in range(200)}
    assert seen == {"sks", "sks, 猫", "sks，红", "sks, 猫，红", "sks，红, 猫"}
    assert choose_caption(row, DataConfig(train="x"), random.Random(0)) == "sks, 猫，红"


def test_fingerprints_depend_on_values_not_on_memory_layout() -> None:
    weight = torch.arange(6.0).view(2, 3)
    first = fingerprint([("weight", weight), ("scale", torch.tensor(2.0))])
    assert first == fingerprint([("weight", weight.t().contiguous().t()), ("scale", torch.tensor(2.0))])
    assert first != fingerprint([("weight", weight), ("scale", torch.tensor(3.0))])
