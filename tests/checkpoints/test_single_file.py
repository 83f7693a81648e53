"""Single files of every family, against diffusers' converters and against the folders they were written from."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from latentdiff.checkpoints.components import build, open_model, open_unet, read_pipeline
from latentdiff.checkpoints.convert import convert
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.errors import CheckpointError, InputError
from latentdiff.models.conditioning import Conditioning
from tests.checkpoints.small_families import UNETS

SD_CLASS = "StableDiffusionPipeline"
OPEN_CLIP = {"cond_stage_model.model.": "text_encoder", "conditioner.embedders.1.model.": "text_encoder_2"}
State = dict[str, torch.Tensor]


def network(folder: Path, name: str) -> State:
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", UNETS)
def test_a_single_file_opens_as_the_model_of_its_folder(name: str, files: Any) -> None:
    file = files(name)
    source, folder = open_model(file), open_model(file.with_suffix(""))
    ours, theirs = read_pipeline(source, torch.float32), read_pipeline(folder, torch.float32)
    for part in ("denoiser", "vae", "text"):
        assert same(getattr(ours, part).state_dict(), getattr(theirs, part).state_dict())
    assert source.unet.config == folder.unet.config and source.vae.config == folder.vae.config
    assert source.schedule == folder.schedule
    for one, other in zip(source.text_encoders, folder.text_encoders, strict=True):
        assert one.config.model_copy(update={"bos_token_id": 0}) == other.config.model_copy(update={"bos_token_id": 0})
    prompts = ["a photo of a CAT, café — 猫 !", ""]
    for one, other in zip(ours.text.tokenizers, theirs.text.tokenizers, strict=True):
        assert torch.equal(one(prompts), other(prompts))


def test_a_variant_of_single_files_is_an_error(files: Any, tmp_path: Path) -> None:
    file = files("sd1")
    with pytest.raises(
        InputError, match=r"variant='fp16' is of the files in a folder, and .*safetensors is a file; omit"
    ):
        open_model(file, OpenOptions(variant="fp16", unet=file))
    vae = Path(shutil.copytree(file.with_suffix("") / "vae", tmp_path / "vae"))
    (weights,) = vae.glob("*.safetensors")
    save_file({key: value + 1 for key, value in load_file(weights).items()}, vae / f"{weights.stem}.fp16.safetensors")
    source = open_model(file, OpenOptions(variant="fp16", vae=vae))
    changed, before = (read_pipeline(one, torch.float32).vae.state_dict() for one in (source, open_model(file)))
    assert all(torch.equal(changed[key], before[key] + 1) for key in before)


@pytest.mark.parametrize("name", ["sd1", "sd1-inpainting", "sd2-v", "xl", "xl-refiner"])
def test_names_agree_with_diffusers_converters(name: str, files: Any) -> None:
    state, folder = load_file(files(name)), files(name).with_suffix("")
    unet = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    assert same(single_file_utils.convert_ldm_unet_checkpoint(dict(state), unet), network(folder, "unet"))
    vae = diffusers.AutoencoderKL.load_config(folder / "vae")
    assert same(single_file_utils.convert_ldm_vae_checkpoint(dict(state), vae), network(folder, "vae"))
    for prefix, encoder in (
        ("cond_stage_model.model.", "text_encoder"),
        ("conditioner.embedders.1.model.", "text_encoder_2"),
    ):
        if f"{prefix}positional_embedding" in state:
            config = transformers.CLIPTextConfig.from_pretrained(folder / encoder)
            made = single_file_utils.convert_open_clip_checkpoint(type("Model", (), {"config": config}), state, prefix)
            assert same(made, network(folder, encoder))


@pytest.mark.parametrize(
    ("name", "pipeline"), [("sd1", "StableDiffusionPipeline"), ("xl", "StableDiffusionXLPipeline")]
)
def test_a_converted_file_opens_in_diffusers(name: str, pipeline: str, files: Any) -> None:
    file = files(name)
    theirs = getattr(diffusers, pipeline).from_single_file(
        file, config=str(file.with_suffix("")), local_files_only=True
    )
    ours = read_pipeline(open_model(file), torch.float32)
    assert same(theirs.unet.state_dict(), ours.denoiser.state_dict())
    assert same(theirs.vae.state_dict(), ours.vae.state_dict())
    assert theirs.tokenizer("a red cat!").input_ids == ours.text.tokenizers[0](["a red cat!"])[0, :6].tolist()


@pytest.mark.parametrize("name", ["sd2-v", "xl"])
def test_round_trips_are_equal_to_the_bit(name: str, files: Any, tmp_path: Path) -> None:
    file = files(name)
    convert(open_model(file), tmp_path / "folder", "diffusers")
    folder, first = tmp_path / "folder", file.with_suffix("")
    for part in open_model(file).networks():
        assert same(network(folder, part), network(first, part))
    convert(open_model(folder), tmp_path / "again.safetensors", "single-file")
    assert same(load_file(tmp_path / "again.safetensors"), load_file(file))


def test_a_dtype_applies_to_every_weight(files: Any, tmp_path: Path) -> None:
    convert(open_model(files("sd1")), tmp_path / "half.safetensors", "single-file", torch.float16)
    whole, half = load_file(files("sd1")), load_file(tmp_path / "half.safetensors")
    assert all(torch.equal(value.half(), half[key]) for key, value in whole.items())


def test_pixels_of_the_bundled_layout_have_no_single_file(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no single-file layout; use --format diffusers"):
        convert(open_model(model_folder), tmp_path / "x.safetensors", "single-file")
    with pytest.raises(InputError, match="exists; choose a new folder"):
        convert(open_model(model_folder), tmp_path, "diffusers")
    assert not list(tmp_path.iterdir())


def stripped(file: Path, target: Path, *dropped: str) -> Path:
    """The file without its metadata, as trainers write it, and without tensors of some prefixes."""
    save_file({key: value for key, value in load_file(file).items() if not key.startswith(dropped or ("\0",))}, target)
    return target


def test_the_prediction_type_of_sd2_must_be_known(files: Any, tmp_path: Path) -> None:
    file = stripped(files("sd2-v"), tmp_path / "x.safetensors", "v_pred")
    with pytest.raises(CheckpointError, match="pass --prediction-type"):
        open_model(file)
    assert open_model(file, OpenOptions(prediction_type="v_prediction")).schedule.prediction_type == "v_prediction"
    marked = stripped(files("sd2-v"), tmp_path / "y.safetensors")
    assert open_model(marked).schedule.prediction_type == "v_prediction"


def test_zero_snr_is_marked_by_a_key(files: Any) -> None:
    schedule = open_model(files("xl-v")).schedule
    assert (schedule.rescale_betas_zero_snr, schedule.prediction_type) == (True, "v_prediction")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_stored_types_are_read(dtype: torch.dtype, files: Any, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in load_file(files("sd1")).items()}
    save_file(state, tmp_path / "x.safetensors")
    ours = read_pipeline(open_model(tmp_path / "x.safetensors"), torch.float32).denoiser.conv_in.weight
    assert torch.equal(ours, state["model.diffusion_model.input_blocks.0.0.weight"].float())


def test_ema_weights_and_other_training_state_are_ignored(files: Any, tmp_path: Path) -> None:
    state = load_file(files("sd1"))
    state |= {"model_ema.decay": torch.zeros(1), "alphas_cumprod": torch.ones(1000), "surprise.x": torch.zeros(1)}
    save_file(state, tmp_path / "x.safetensors")
    source = open_model(tmp_path / "x.safetensors")
    assert same(
        read_pipeline(source, torch.float32).denoiser.state_dict(), network(files("sd1").with_suffix(""), "unet")
    )
    assert source.notes[-2:] == (
        "EMA weights: 1 tensors of model_ema are not used; the other weights are",
        "1 unknown tensors are ignored, surprise.x first",
    )


def test_a_pickle_needs_permission_and_gives_the_same_model(files: Any, tmp_path: Path) -> None:
    state = load_file(files("sd1"))
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"is a pickle, a format that can contain code; .* --allow-pickle"):
        open_model(tmp_path / "x.ckpt")
    ours = read_pipeline(open_model(tmp_path / "x.ckpt", OpenOptions(allow_pickle=True)), torch.float32)
    assert same(ours.denoiser.state_dict(), network(files("sd1").with_suffix(""), "unet"))
    torch.save(state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert open_model(tmp_path / "old.ckpt", OpenOptions(allow_pickle=True)).unet.config.in_channels == 4


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("allow", [False, True])
def test_code_in_a_pickle_never_runs(allow: bool, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "y": RunsCode(tmp_path / "ran")}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="is a pickle" if not allow else "not a pickle of only tensors") as caught:
        open_model(tmp_path / "x.ckpt", OpenOptions(allow_pickle=allow))
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)
    assert not allow or "it calls " in str(caught.value)


def test_a_vae_from_another_file(files: Any, tmp_path: Path) -> None:
    whole = load_file(files("sd1"))
    bare = {key.removeprefix("first_stage_model."): value + 1 for key, value in whole.items() if "first_stage" in key}
    save_file(bare, tmp_path / "vae.safetensors")
    shutil.copytree(files("xl").with_suffix("") / "vae", tmp_path / "vae")
    for path in (tmp_path / "vae.safetensors", tmp_path / "vae", files("xl"), files("xl").with_suffix("")):
        vae = read_pipeline(open_model(files("sd1"), OpenOptions(vae=path)), torch.float32).vae
        assert not torch.equal(vae.decoder.conv_in.weight, whole["first_stage_model.decoder.conv_in.weight"])
    with pytest.raises(CheckpointError, match="is a VAE, not a model; pass it by --vae"):
        open_model(tmp_path / "vae.safetensors")


def test_a_unet_file_is_combined_with_the_rest_of_a_model(files: Any, tmp_path: Path) -> None:
    unet = tmp_path / "unet.safetensors"
    shutil.copy(next((files("sd1").with_suffix("") / "unet").glob("*.safetensors")), unet)
    with pytest.raises(CheckpointError, match="contains a U-Net; pass it by --unet"):
        open_model(unet)
    ours = read_pipeline(open_model(files("sd1"), OpenOptions(unet=unet)), torch.float32)
    assert same(ours.denoiser.state_dict(), load_file(unet))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lora_unet_x.lora_down.weight": torch.zeros(1, 2)}, "is a LoRA, not a model; pass it by --lora"),
        ({"emb_params": torch.zeros(1, 768)}, "embedding, not a model; pass it by --embedding"),
        ({"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2)}, "is a text encoder, not a model"),
        ({"x": torch.zeros(1)}, "in an unknown layout; only Stable Diffusion"),
    ],
)
def test_other_files_are_named(state: State, message: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_model(tmp_path / "x.safetensors")


def test_a_missing_file_is_not_searched_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="runs is a local folder, so the hub was not searched"):
        open_model("runs/x")
    with pytest.raises(CheckpointError, match="a weight file, so the hub was not searched"):
        open_model("models/x.safetensors")


def test_pruned_unets_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    """Attention of uneven depth and no middle block, as in SSD-1B and small-sd."""
    sizes = {"block_out_channels": (16, 32), "norm_num_groups": 8, "cross_attention_dim": 32, "attention_head_dim": 4}
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    uneven = {"transformer_layers_per_block": [1, [1, 2]], "reverse_transformer_layers_per_block": [[2, 1, 3], 1]}
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 32))
    for changes in (uneven, {"mid_block_type": None}, {"mid_block_type": "UNetMidBlock2D"}):
        theirs = diffusers.UNet2DConditionModel(**sizes, **kinds, **changes)
        theirs.save_pretrained(tmp_path / "unet")
        ours = build(open_unet(tmp_path / "unet"), torch.float32)
        found = ours(*inputs[:2], Conditioning(inputs[2]))
        assert torch.allclose(found, theirs(*inputs).sample, atol=1e-5)


def test_the_refiner_reads_the_state_before_the_last_and_pooled_text(files: Any) -> None:
    text = read_pipeline(open_model(files("xl-refiner")), torch.float32).text
    folder = files("xl-refiner").with_suffix("") / "text_encoder_2"
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(folder)
    with torch.no_grad():
        wanted = theirs(text.tokenizers[0](["a red cat"]), output_hidden_states=True)
    found = text.encode(["a red cat"])
    assert torch.allclose(found.hidden, wanted.hidden_states[-2], atol=1e-5)
    assert found.pooled is not None and torch.allclose(found.pooled, wanted.text_embeds, atol=1e-5)
