"""Model folders, LoRAs and learned words with a changed value or damaged header: one-line errors."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentdiff.checkpoints.components import read_limits, read_pipeline, write_pipeline
from latentdiff.checkpoints.lora_reader import FILE, KOHYA
from latentdiff.checkpoints.lora_stack import LoraStack
from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.checkpoints.textual_inversion import load_learned
from latentdiff.errors import CheckpointError, InputError, LatentDiffError
from latentdiff.files import read_json
from latentdiff.training.lora import add_lora
from tests.small import small_components

EXAMPLES = int(os.environ.get("LATENTDIFF_MUTATIONS", "60"))
QUICK = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 10**9, 2**31, 2**63, 2**64, -(2**40), 10**30, 0.0, -0.5, 1e-300, 1e300])
VALUES = NUMBERS | st.sampled_from(
    [
        None,
        True,
        False,
        "",
        "x",
        "64",
        "../x",
        [],
        [None],
        [64],
        [64, "x"],
        [[1]],
        {},
        {"a": 1},
        ["diffusers"],
        "\ud800",
    ]
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each of SD and SDXL, LoRA files in both layouts, and learned words."""
    root = tmp_path_factory.mktemp("originals")
    for name, xl in (("sd", False), ("xl", True)):
        write_pipeline(small_components(xl), root / name)
    parts = read_pipeline(root / "sd", torch.float32)
    add_lora(parts, rank=2, text_encoder=True)
    save_lora(parts, root / "lora", trigger="x")
    save_file({"<toy>": torch.randn(2, 32)}, root / "words.safetensors")
    return {"sd": root / "sd", "xl": root / "xl", "lora": root / "lora", "words": root / "words.safetensors"}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def replaced(document: Any, path: tuple[Any, ...], value: Any, delete: bool) -> Any:
    """The document with one value replaced or removed."""
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if delete:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return document


def mutate_json(text: str, draw: Callable[[Any], Any]) -> str:
    document = json.loads(text)
    where = places(document)[:400]
    return json.dumps(replaced(document, draw(st.sampled_from(where)), draw(VALUES), draw(st.booleans())))


def mutate_tensors(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    """A changed value in the header, a changed byte, or a truncated file."""
    size = int.from_bytes(data[:8], "little")
    kind = draw(st.sampled_from(["header", "byte", "cut", "length"]))
    if kind == "header":
        header = mutate_json(data[8 : 8 + size].decode(), draw).encode(errors="replace")
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if kind == "length":
        return draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    position = draw(st.integers(0, min(len(data), size + 8) - 1))
    return data[:position] + bytes([draw(st.integers(0, 255))]) + data[position + 1 :]


def one_line(call: Callable[[], Any]) -> None:
    """The call succeeds, or raises one of our errors whose message is one line of bounded length."""
    try:
        call()
        message = ""
    except LatentDiffError as error:
        message = str(error)
    assert "\n" not in message and len(message) < 700, message


def mutated(path: Path, draw: Callable[[Any], Any]) -> bytes:
    if path.suffix == ".json":
        return mutate_json(path.read_text(encoding="utf-8"), draw).encode(errors="replace")
    data = path.read_bytes()
    return mutate_tensors(data, draw) if path.suffix == ".safetensors" else data[: draw(st.integers(0, len(data)))]


@QUICK
@given(data=st.data())
def test_folders(originals: dict[str, Path], data: st.DataObject) -> None:
    source = originals[data.draw(st.sampled_from(["sd", "xl"]))]
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(source, folder, copy_function=os.link)
        (folder / name).unlink()
        (folder / name).write_bytes(mutated(source / name, data.draw))
        one_line(lambda: read_limits(folder))
        one_line(lambda: read_pipeline(folder, torch.float32).text.encode(["a red apple"]))


@QUICK
@given(data=st.data())
def test_loras(originals: dict[str, Path], data: st.DataObject) -> None:
    source = originals["lora"] / data.draw(st.sampled_from([FILE, KOHYA]))
    adapters = LoraStack(small_components())
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "x.safetensors"
        file.write_bytes(mutate_tensors(source.read_bytes(), data.draw))
        one_line(lambda: adapters.read(file))


@QUICK
@given(data=st.data())
def test_learned_words(originals: dict[str, Path], data: st.DataObject) -> None:
    parts = small_components()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "x.safetensors"
        file.write_bytes(mutate_tensors(originals["words"].read_bytes(), data.draw))
        one_line(lambda: load_learned(parts, file))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block=1000000000: Input should be less"),
        ("unet/config.json", {"layers_per_block": 200}, "the config describes .* residual blocks and the weights have"),
        ("unet/config.json", {"norm_num_groups": 0}, "norm_num_groups=0: Input should be greater"),
        ("unet/config.json", {"block_out_channels": 64}, "block_out_channels=64: Input should be a valid tuple"),
        ("vae/config.json", {"latent_channels": -4}, "latent_channels=-4"),
        ("text_encoder/config.json", {"num_hidden_layers": 250}, "describes 250 layers and the weights have 2"),
        ("text_encoder/config.json", {"vocab_size": 10**12}, "vocab_size=1000000000000"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "texts have 77 tokens, the encoder reads"),
        ("model_index.json", {"text_encoder": "CLIPTextModel"}, "is not a pair of library and class"),
        ("model_index.json", {"text_encoder": ["transformers"]}, "is not a pair of library and class"),
        ("model_index.json", {"text_encoder": None}, "has a tokenizer but no text_encoder"),
    ],
)
def test_numbers_out_of_bounds_are_named(
    file: str, changes: dict[str, Any], message: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(originals["sd"], tmp_path / "model"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        read_pipeline(folder, torch.float32)


def test_text_encoders_that_read_different_numbers_of_tokens_are_named(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(originals["xl"], tmp_path / "model"))
    path = folder / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 8}))
    with pytest.raises(CheckpointError, match="the texts of the tokenizers have 16 and 8 tokens"):
        read_pipeline(folder, torch.float32)


def test_a_vocabulary_larger_than_the_table_is_named(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals["sd"], tmp_path / "model"))
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"]["9999"] = {"content": "new word", "special": False}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"the tokenizer has token .*, the encoder's vocab_size is"):
        read_pipeline(folder, torch.float32)


def test_deeply_nested_json_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_json(path)


@pytest.mark.parametrize(
    "header", [b"", b"x" * 7, (2**63).to_bytes(8, "little"), (50).to_bytes(8, "little") + b"{" * 50]
)
def test_a_hostile_header_is_one_line(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(header)
    for suffix in (".safetensors", ".gguf", ".ckpt"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(header)
        with pytest.raises((CheckpointError, InputError)) as caught:
            read_pipeline(path, torch.float32)
        assert "\n" not in str(caught.value)
