"""`model_index.json`: every component is read, documented as unused, or rejected by name."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from latentdiff.checkpoints.components import open_model, read_pipeline
from latentdiff.checkpoints.pipeline_index import INDEX, KNOWN, SETTINGS, UNUSED
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.errors import CheckpointError
from latentdiff.sampling.schedule import alphas_cumprod
from tests.small import small_components

ABSENT = [None, None]
OUR_TASKS = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("name", OUR_TASKS)
def test_every_component_of_diffusers_pipelines_is_known(name: str) -> None:
    parameters = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    assert parameters <= KNOWN | {*SETTINGS}, parameters


@pytest.mark.parametrize(
    ("component", "entry"),
    [
        ("unet", ["diffusers", "UNet3DConditionModel"]),
        ("unet", ["my_module", "UNet2DConditionModel"]),
        ("unet", ["diffusers", "OnnxRuntimeModel"]),
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("vae", ["diffusers", "IdentityVAE"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("text_encoder", ["my_module", "CLIPTextModel"]),
        ("tokenizer", ["transformers", "T5Tokenizer"]),
        ("scheduler", ["my_module", "DDIMScheduler"]),
        ("controlnet", ["diffusers", "ControlNetModel"]),
        ("motion_adapter", ["diffusers", "MotionAdapter"]),
        ("transformer", ["diffusers", "FluxTransformer2DModel"]),
        ("is_cosxl_edit", True),
    ],
)
def test_a_component_of_another_class_is_refused_by_name(component: str, entry: Any, folder: Path) -> None:
    change(folder / INDEX, **{component: entry})
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    value = entry if isinstance(entry, bool) else list(entry)
    assert f"{component}={value!r} is not supported; use a model of" in str(caught.value)


@pytest.mark.parametrize("entry", [None, ABSENT])
@pytest.mark.parametrize("component", ["unet", "vae", "scheduler"])
def test_a_required_component_that_is_null_is_named_in_the_error(component: str, entry: Any, folder: Path) -> None:
    change(folder / INDEX, **{component: entry})
    with pytest.raises(CheckpointError, match=f"{INDEX}: the pipeline has no {component}; use a complete"):
        open_model(folder)


@pytest.mark.parametrize("component", ["text_encoder", "tokenizer"])
def test_a_text_encoder_needs_its_tokenizer(component: str, folder: Path) -> None:
    change(folder / INDEX, **{component: ABSENT})
    lacks = {"text_encoder": "a tokenizer but no text_encoder", "tokenizer": "a text_encoder but no tokenizer"}
    with pytest.raises(CheckpointError, match=f"the pipeline has {lacks[component]}"):
        open_model(folder)


def test_a_component_that_the_folder_lacks_is_named(folder: Path) -> None:
    entries = {"text_encoder_2": ["transformers", "CLIPTextModel"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
    change(folder / INDEX, **entries)
    with pytest.raises(CheckpointError, match=r"text_encoder_2/config.json cannot be read"):
        open_model(folder)


def test_unused_components_are_listed_and_not_opened(folder: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change(folder / INDEX, safety_checker=checker, requires_safety_checker=True, add_watermarker=None)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"damaged")
    source = open_model(folder)
    assert "safety_checker: not read" in source.notes and "safety_checker" in UNUSED
    assert read_pipeline(source, torch.float32).denoiser.config == small_components().denoiser.config


@pytest.mark.parametrize("value", ["false", 0, []])
def test_a_setting_that_is_not_a_boolean_is_named_in_the_error(value: Any, folder: Path) -> None:
    change(folder / INDEX, force_zeros_for_empty_prompt=value)
    with pytest.raises(CheckpointError, match=r"force_zeros_for_empty_prompt=.* must be true or false"):
        open_model(folder)


def test_the_scheduler_is_of_the_class_in_the_index_as_in_diffusers(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}))
    change(folder / INDEX, scheduler=["diffusers", "EulerDiscreteScheduler"])
    ours, theirs = open_model(folder), diffusers.StableDiffusionPipeline.from_pretrained(folder).scheduler
    assert type(theirs).__name__ == "EulerDiscreteScheduler" and ours.generation.sampler == "euler"
    assert ours.schedule.timestep_spacing == theirs.config.timestep_spacing == "linspace"
    assert torch.allclose(alphas_cumprod(ours.schedule).float(), theirs.alphas_cumprod, atol=1e-6)
    change(folder / INDEX, scheduler=["diffusers", "EDMEulerScheduler"])
    with pytest.raises(CheckpointError, match=f"{INDEX}: _class_name='EDMEulerScheduler' is not supported"):
        open_model(folder)


@pytest.mark.parametrize(
    ("component", "name"), [("unet", "UNet3DConditionModel"), ("vae", "AutoencoderTiny"), ("vae", "VQModel")]
)
def test_the_class_in_a_network_s_config_is_refused_by_name(component: str, name: str, folder: Path) -> None:
    change(folder / component / "config.json", _class_name=name)
    with pytest.raises(CheckpointError, match=rf"{component}/config.json: _class_name='{name}' is not supported"):
        open_model(folder)


@pytest.mark.parametrize(
    ("theirs", "ours", "unused"),
    [
        # attention_head_dim is read as num_attention_heads; the others affect training, float16, or another layer.
        (
            "UNet2DConditionModel",
            UNetConfig,
            {"attention_head_dim", "dropout", "upcast_attention", "addition_embed_type_num_heads"},
        ),
        ("AutoencoderKL", VAEConfig, {"down_block_types", "up_block_types"}),
    ],
)
def test_every_key_of_diffusers_networks_is_known(theirs: str, ours: Any, unused: set[str]) -> None:
    keys = set(inspect.signature(getattr(diffusers, theirs).__init__).parameters) - {"self"}
    assert keys == (keys & (ours.model_fields.keys() | ours._only().keys())) | unused
