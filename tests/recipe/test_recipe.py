"""Recipes survive writing and reading, and are compatible with other programs."""

import errno
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin
from sd_parsers import ParserManager

from latentdiff.errors import InputError
from latentdiff.recipe import CHUNK, Recipe, read_any, read_recipe, write_image
from latentdiff.recipe.comfyui import parse_comfyui
from latentdiff.recipe.infotext import parse_infotext, write_infotext

RECIPE = Recipe(
    prompt="猫, a \"cat\"\nface", negative_prompt="dog", seed=2**40, sampler="euler_ancestral", eta=0.1, steps=3,
    guidance_scale=5.0, height=8, width=4, dtype="float32", model_hash="0" * 16, version="0.1.0", spacing="karras",
    hashes={"model": "0123456789", "lora:x": "abcdef0123"}, model="models/some model.safetensors",
    extend={"left": 8}, mask_hash="1" * 16, mask_blur=2.0, strength=0.5, clip_skip=1,
)  # fmt: skip
SUFFIXES = [".png", ".webp", ".jpg"]


def picture() -> Image.Image:
    return Image.new("RGB", (4, 8), "red")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_recipes_survive_writing_and_reading(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(picture(), RECIPE, path)
    assert read_recipe(path) == RECIPE
    with Image.open(path) as image:
        assert image.tobytes() == picture().tobytes() or suffix == ".jpg"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sd_parsers_reads_our_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(picture(), RECIPE.model_copy(update={"prompt": "a cat, red"}), path)
    info = ParserManager().parse(path)
    assert info is not None
    (sampler,) = info.samplers
    assert sampler.name == "Euler a" and sampler.parameters["seed"] == str(2**40)
    assert [prompt.value for prompt in info.prompts] == ["a cat, red"]
    assert [prompt.value for prompt in info.negative_prompts] == ["dog"]
    assert [(model.name, model.hash) for model in info.models if model.hash == "0123456789"]


def test_the_infotext_line_is_plain() -> None:
    line = write_infotext(RECIPE, 4, 8).split("\n")[-1]
    assert line.startswith("Steps: 3, Sampler: Euler a, Schedule type: Karras, CFG scale: 5, Seed: 1099511627776, ")
    assert "Size: 4x8" in line and line.endswith("Version: latentdiff 0.1.0")
    settings, dropped = parse_infotext(write_infotext(RECIPE, 4, 8)) or ({}, [])
    assert settings["prompt"] == RECIPE.prompt and settings["negative_prompt"] == "dog"
    same = ("seed", "sampler", "spacing", "steps", "guidance_scale", "height", "width", "strength", "eta", "clip_skip")
    assert {name: settings[name] for name in same} == {name: getattr(RECIPE, name) for name in same}
    assert dropped == ["Model hash: 0123456789", "Model: some model"]


A1111 = """masterpiece, (best: 1.2)
two lines
Negative prompt: bad, "ugly"
worse
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 512x768, Model hash: abc, Model: x, \
Clip skip: 2, Hires upscale: 2, Denoising strength: 0.5, Lora hashes: "a: 1, b: 2", Version: v1.10.1"""


def test_a1111s_text_is_read() -> None:
    settings, dropped = parse_infotext(A1111) or ({}, [])
    assert settings == {
        "prompt": "masterpiece, (best: 1.2)\ntwo lines", "negative_prompt": 'bad, "ugly"\nworse', "steps": 20,
        "sampler": "dpmpp_2m", "spacing": "karras", "guidance_scale": 7.5, "seed": 7, "width": 512, "height": 768,
        "clip_skip": 1, "hires": 2.0, "hires_strength": 0.5,
    }  # fmt: skip
    assert dropped == ["Model hash: abc", "Model: x"]
    assert parse_infotext("a cat, 3: 4, b: 5") is None


@pytest.mark.parametrize(
    ("pairs", "expected", "dropped"),
    [
        (
            "Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent, Tiling: True",
            {"hires": 1.5, "hires_strength": 0.4, "hires_steps": 12, "upscaler": "latent", "seamless": "x,y"},
            [],
        ),
        (
            "Denoising strength: 0.4, Hires upscale: 2, Hires steps: 0, Hires upscaler: R-ESRGAN 4x+",
            {"hires": 2.0, "hires_strength": 0.4},
            ["Hires upscaler: R-ESRGAN 4x+"],
        ),
        ("Denoising strength: 0.4, Hires resize: 9x9", {}, ["Hires resize: 9x9", "Denoising strength: 0.4"]),
        ("Denoising strength: 0.4, Hires upscale: 1", {}, ["Hires upscale: 1", "Denoising strength: 0.4"]),
        ("Denoising strength: 0.4", {"strength": 0.4}, []),
    ],
)
def test_the_second_pass_of_a1111(pairs: str, expected: dict[str, Any], dropped: list[str]) -> None:
    settings, others = parse_infotext(f"x\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, {pairs}") or ({}, [])
    plain, _ = parse_infotext("x\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1") or ({}, [])
    assert {name: settings[name] for name in settings.keys() - plain.keys()} == expected
    assert others == dropped


def test_a_second_pass_is_written_as_a1111_writes_it(tmp_path: Path) -> None:
    """The size is that of the first pass, and the upscaler is named, for which A1111 has another default."""
    recipe = RECIPE.model_copy(
        update={"hires": 2.0, "hires_strength": 0.25, "width": 16, "height": 8, "strength": None}
    )
    write_image(Image.new("RGB", (32, 16)), recipe, tmp_path / "a.png")
    text = Image.open(tmp_path / "a.png").text["parameters"]
    assert "Size: 16x8," in text and "Hires upscale: 2, Hires upscaler: Lanczos," in text
    settings, _ = parse_infotext(text) or ({}, [])
    names = ("width", "height", "hires", "hires_strength", "upscaler")
    assert [settings[name] for name in names] == [16, 8, 2.0, 0.25, "lanczos"]


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("Euler a", "Automatic", ("euler_ancestral", "linspace")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("DDIM", "Automatic", ("ddim", "leading")),
        ("Euler", "SGM Uniform", ("euler", "sgm_uniform")),
    ],
)
def test_schedules_of_a1111(sampler: str, schedule: str, expected: tuple[str, str]) -> None:
    text = f"x\nSteps: 20, Sampler: {sampler}, Schedule type: {schedule}, CFG scale: 7, Seed: 1"
    settings, dropped = parse_infotext(text) or ({}, [])
    assert (settings["sampler"], settings["spacing"]) == expected and not dropped


def test_a1111_settings_without_an_equivalent_are_named() -> None:
    settings, dropped = parse_infotext("x\nSteps: many, Sampler: Restart, Seed: 1, ENSD: 31337") or ({}, [])
    assert settings == {"prompt": "x", "seed": 1}
    assert dropped == ["Steps: many", "Sampler: Restart", "ENSD: 31337"]


def comfyui_graph(**sampler: Any) -> dict[str, Any]:
    inputs = {
        "seed": 5, "steps": 12, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["11", 0], "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    return {
        "3": {"class_type": "KSampler", "inputs": inputs | sampler},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["10", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["10", 1]}},
        "10": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "lora_name": "l", "strength_model": 1}},
        "11": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "strength": 1}},
    }


def test_comfyuis_graph_is_read() -> None:
    settings, dropped = parse_comfyui(json.dumps(comfyui_graph())) or ({}, [])
    assert settings == {
        "prompt": "a cat", "negative_prompt": "a dog", "seed": 5, "steps": 12, "guidance_scale": 6.5,
        "sampler": "dpmpp_2m", "spacing": "karras", "width": 640, "height": 512,
    }  # fmt: skip
    assert dropped == ["Model: a.safetensors", "node ControlNetApply", "node LoraLoader"]
    settings, dropped = parse_comfyui(json.dumps(comfyui_graph(sampler_name="res_2s", denoise=0.4))) or ({}, [])
    assert settings["strength"] == 0.4 and "sampler" not in settings and "sampler_name: res_2s" in dropped


def test_what_further_samplers_of_comfyui_do_is_named() -> None:
    graph = comfyui_graph()
    again = graph["3"]["inputs"] | {"start_at_step": 6, "end_at_step": 10000, "noise_seed": 5}
    _, dropped = parse_comfyui(json.dumps(graph | {"12": {"class_type": "KSamplerAdvanced", "inputs": again}})) or (
        {},
        [],
    )
    assert "another KSamplerAdvanced" in dropped
    only_part = {key: node for key, node in graph.items() if key != "3"}
    only_part["3"] = {"class_type": "KSamplerAdvanced", "inputs": again}
    _, dropped = parse_comfyui(json.dumps(only_part)) or ({}, [])
    assert "steps 6 to 10000" in dropped
    only_part["3"]["inputs"] |= {"start_at_step": 0}
    _, dropped = parse_comfyui(json.dumps(only_part)) or ({}, [])
    assert not any(name.startswith("steps") for name in dropped)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"3": 1}', "[" * 10**5, '{"3": {"class_type": "KSampler", "inputs": {"positive": ["3", 0]}}}'],
)
def test_invalid_and_circular_graphs(text: str) -> None:
    assert parse_comfyui(text) in (None, ({}, []))


def test_texts_of_other_programs_in_files(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("prompt", json.dumps(comfyui_graph()), zip=True)
    picture().save(tmp_path / "a.png", pnginfo=chunks)
    assert (found := read_any(tmp_path / "a.png")).program == "ComfyUI" and found.settings["seed"] == 5
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "prompt:" + json.dumps(comfyui_graph())
    picture().save(tmp_path / "a.webp", exif=exif)
    assert read_any(tmp_path / "a.webp").settings["prompt"] == "a cat"
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + A1111.encode("utf-16-be")
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert (found := read_any(tmp_path / "a.jpg")).program == "A1111" and found.settings["seed"] == 7
    with pytest.raises(InputError, match="was made by A1111"):
        read_recipe(tmp_path / "a.jpg")


def test_an_older_recipe_implies_the_defaults_of_its_time(tmp_path: Path) -> None:
    chunks, path = PngImagePlugin.PngInfo(), tmp_path / "a.png"
    chunks.add_itxt(CHUNK, RECIPE.model_dump_json(exclude={"optimize", "low_memory", "approximate"}))
    picture().save(path, pnginfo=chunks)
    assert read_recipe(path) == RECIPE and (RECIPE.optimize, RECIPE.low_memory) == ("auto", False)


def test_a_recipe_without_the_strength_of_hires_implies_the_earlier_default() -> None:
    old = RECIPE.model_dump() | {"hires": 2.0}
    assert Recipe.model_validate(old).hires_strength == 0.6
    assert Recipe.model_validate(old | {"hires_strength": 0.2}).hires_strength == 0.2
    assert RECIPE.hires_strength is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_no_files(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latentdiff.files.sync", full)
    with pytest.raises(InputError, match="No space left"):
        write_image(picture(), RECIPE, tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"tEXt", b"latentdiff\0" + b" " * 50_000_000),
        chunk(b"iTXt", b"latentdiff\0\1\0\0\0" + zlib.compress(b" " * 50_000_000)),
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b" " * 50_000_000)),
    ],
    ids=["plain", "packed", "packed latin"],
)
def test_a_text_of_50_megabytes_is_refused(text: bytes, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + text + data[33:])
    with pytest.raises(InputError, match="an embedded text is larger than 1048576 bytes"):
        read_recipe(tmp_path / "a.png")


def test_a_recipe_too_large_for_a_jpeg(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is larger than the 65000 bytes of a JPEG.*write a \.png"):
        write_image(picture(), RECIPE.model_copy(update={"prompt": "x" * 40_000}), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no image", "not a readable PNG, JPEG, WebP or GIF"),
        (b"\x89PNG\r\n\x1a\n", "contains no recipe"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"latentdiff\0\0\0\0\0{}"), "its recipe is damaged at prompt"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"latentdiff\0\0\0\0\0[" + b"[" * 9999), "its recipe is damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"zTXt", b"latentdiff\0\0abc"), "an embedded text is damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"latentdiff\0\0"), "an embedded text is truncated"),
    ],
)
def test_files_that_cannot_be_read(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_any(tmp_path / "a.png")
