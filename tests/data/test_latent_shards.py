"""Latents on disk: interruption, damage and bounded memory."""

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentdiff.config.data import DataConfig
from latentdiff.config.model import IdentityVAEConfig
from latentdiff.data import latent_cache, latent_shards
from latentdiff.data.archives import Container
from latentdiff.data.latent_cache import LatentImages, encode_rows, load_view
from latentdiff.data.latent_shards import MANIFEST, LatentShards
from latentdiff.data.layouts import DataRow
from latentdiff.models.vae import IdentityVAE
from tests.data.test_layouts import picture

CONFIG = DataConfig(train="pictures", resolution=8)


def many_rows(count: int) -> list[DataRow]:
    """Pictures in memory: one PNG, followed by different bytes for each picture."""
    names = tuple(f"{k:06}" for k in range(count))
    container = Container("many", names, lambda name: picture() + name.encode())
    return [DataRow(container, name, (f"caption of picture {name}",)) for name in names]


def identity() -> IdentityVAE:
    return IdentityVAE(IdentityVAEConfig())


def test_latents_are_stored_in_half_precision(tmp_path: Path) -> None:
    shards = LatentShards(tmp_path / "cache", "vae")
    small, wide = torch.randn(3, 8, 2, 2), torch.randn(2, 8, 2, 4)
    shards.add(["a", "b", "c"], small)
    shards.add(["d", "e"], wide)
    assert "a" in shards and "d" not in shards  # a shard has one shape: the first was written when another came
    shards.flush()
    for opened in (shards, LatentShards(tmp_path / "cache", "vae")):
        assert torch.equal(opened["b"], small[1].half()) and torch.equal(opened["e"], wide[1].half())
    assert [json.loads((tmp_path / "cache" / MANIFEST).read_text())["shards"]] == [opened.files] and opened.files == [
        "00000.safetensors", "00001.safetensors",
    ]  # fmt: skip


def test_latents_of_another_model_are_deleted(tmp_path: Path) -> None:
    shards = LatentShards(tmp_path, "vae")
    shards.add(["a"], torch.randn(1, 8, 2, 2))
    shards.flush()
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    assert "a" not in LatentShards(tmp_path, "another")
    assert not (tmp_path / "00000.safetensors").exists() and (tmp_path / "mine.safetensors").exists()


@pytest.mark.parametrize("damage", ["manifest", "truncated", "missing", "keys"])
def test_damaged_shards_are_encoded_again(damage: str, tmp_path: Path) -> None:
    rows = many_rows(3)
    (first, *_) = encode_rows(identity(), rows, CONFIG, tmp_path)
    expected, shard = first.cuts[0].clone(), tmp_path / "00000.safetensors"
    if damage == "manifest":
        (tmp_path / MANIFEST).write_text('{"model": 3}')
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes().replace(b'\\"]', b'\\" '))
    (again, *_) = encode_rows(identity(), rows, CONFIG, tmp_path)
    assert torch.equal(again.cuts[0], expected)


def test_an_interrupted_encoding_continues_after_its_last_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, loaded = many_rows(40), []
    monkeypatch.setattr(latent_cache, "PIXELS_AT_ONCE", 4 * 8 * 8)
    monkeypatch.setattr(latent_shards, "SHARD_BYTES", 8 * 6 * 8 * 8 * 2)
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def interrupted(row: DataRow, view: latent_cache.View) -> torch.Tensor:
        if len(loaded) == 21:
            raise KeyboardInterrupt
        loaded.append(row.name)
        return load_view(row, view)

    monkeypatch.setattr(latent_cache, "load_view", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_rows(identity(), rows, CONFIG, tmp_path)
    done = sum(len(load_file(path)["latents"]) for path in tmp_path.glob("*.safetensors"))
    assert 16 <= done <= 20 and not list(tmp_path.glob(".*"))
    loaded.clear()
    monkeypatch.setattr(latent_cache, "load_view", lambda row, view: loaded.append(row.name) or load_view(row, view))
    encoded = encode_rows(identity(), rows, CONFIG, tmp_path)
    assert len(loaded) == 40 - done
    data = LatentImages(rows, encoded, CONFIG)
    assert all(data[k, 0]["mean"].shape == (3, 8, 8) for k in range(40))


def test_unused_shards_are_deleted_when_others_are_written(tmp_path: Path) -> None:
    rows = many_rows(3)
    for resolution in (8, 16):
        encode_rows(
            identity(), rows, CONFIG.model_copy(update={"resolution": resolution, "allow_upscale": 2}), tmp_path
        )
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["00000.safetensors"]
    assert load_file(tmp_path / "00000.safetensors")["latents"].shape[2:] == (16, 16)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_million_pictures_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's memory grows by a few kilobytes per picture, and latents are in files mapped into memory."""
    shard_bytes = 2**16
    monkeypatch.setattr(latent_shards, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(latent_cache, "PIXELS_AT_ONCE", 16 * 8 * 8)
    pending, add = [], LatentShards.add

    def watched(self: LatentShards, keys: list[str], latents: torch.Tensor) -> None:
        add(self, keys, latents)
        pending.append(sum(latent.nbytes for latent in self._pending.values()))

    monkeypatch.setattr(LatentShards, "add", watched)
    peaks = []
    for count in (100, 400):
        tracemalloc.start()
        rows = many_rows(count)
        data = LatentImages(rows, encode_rows(identity(), rows, CONFIG, tmp_path / str(count)), CONFIG)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_picture = (peaks[1] - peaks[0]) / 300
    assert 1e6 * per_picture < 4e9
    assert max(pending) < shard_bytes
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    files = {str(path) for path in (tmp_path / "400").glob("*.safetensors")}
    assert len(files) > 4 and files <= mapped
    assert len(list(Path("/proc/self/fd").iterdir())) < 100  # mapped files are closed
    assert data[399, 0]["mean"].shape == (3, 8, 8)
