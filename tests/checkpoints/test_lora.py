"""LoRA files: training and merging as in peft, layouts of diffusers and kohya, and errors for other files."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import Components, read_pipeline
from latentdiff.checkpoints.lora_names import parts_of
from latentdiff.checkpoints.lora_reader import FILE, KOHYA
from latentdiff.checkpoints.lora_stack import LoraStack
from latentdiff.checkpoints.lora_writer import save_lora
from latentdiff.errors import CheckpointError
from latentdiff.models.conditioning import Conditioning
from latentdiff.training.lora import add_lora


def outcome(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    sample, hidden = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor([3, 700]), Conditioning(hidden))


def merge_lora(parts: Components, path: Path, scale: float = 1.0) -> int:
    """Apply one LoRA; returns the number of layers that it changes."""
    adapters = LoraStack(parts)
    adapter = adapters.read(path)
    adapters.add(adapter, scale)
    adapters.apply(parts_of(parts), adapter.deltas)
    return len(adapter.deltas)


def trained(model_folder: Path, dora: bool = False, text: bool = False) -> Components:
    """A model whose low-rank pairs have learned something."""
    parts = read_pipeline(model_folder, torch.float32)
    add_lora(parts, rank=4, dora=dora, text_encoder=text)
    for name, p in [*parts.denoiser.named_parameters(), *parts.text.named_parameters()]:
        if p.requires_grad:
            assert "lora" in name
            p.data += 0.1 * torch.randn_like(p)
    return parts


@pytest.mark.parametrize("dora", [False, True])
def test_merged_equals_trained(model_folder: Path, tmp_path: Path, dora: bool) -> None:
    parts = trained(model_folder, dora)
    save_lora(parts, tmp_path)
    fresh = read_pipeline(model_folder, torch.float32)
    before = outcome(fresh.denoiser)
    layers = len([key for key in load_file(tmp_path / FILE) if key.endswith("lora_A.weight")])
    assert merge_lora(fresh, tmp_path) == layers > 20
    assert (outcome(fresh.denoiser) - outcome(parts.denoiser)).abs().max() < 1e-5
    assert (before - outcome(fresh.denoiser)).abs().max() > 1e-2


def test_layers_of_one_input_share_it_for_their_gradients(model_folder: Path) -> None:
    """In bfloat16 the gradients are the same to the bit as with peft's copies of the input, in less memory."""
    unet = trained(model_folder).denoiser
    generator = torch.Generator().manual_seed(5)
    sample, hidden = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    found = []
    for copies in (False, True):
        for layer in unet.modules():
            if isinstance(layer, LoraLayer):
                assert copies or not layer.cast_input_dtype_enabled
                layer.cast_input_dtype_enabled = copies
        saved: list[Tensor] = []
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t),
        ):
            out = unet(sample, torch.tensor([3, 700]), Conditioning(hidden))
        unet.zero_grad()
        out.float().square().sum().backward()
        size = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}.values())
        found.append((size, torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])))
    assert torch.equal(found[0][1], found[1][1]) and found[0][0] < found[1][0]


def test_diffusers_reads_ours_and_makes_the_same_picture(model_folder: Path, tmp_path: Path) -> None:
    save_lora(trained(model_folder), tmp_path)
    ours = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    ours.load_lora(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    theirs.load_lora_weights(tmp_path)
    assert (outcome(ours.denoiser) - diffusers_outcome(theirs.unet)).abs().max() < 1e-5


def diffusers_outcome(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    sample, hidden = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor([3, 700]), hidden).sample


@pytest.mark.parametrize("dora", [False, True])
def test_kohyas_layout_survives_a_round_trip(model_folder: Path, tmp_path: Path, dora: bool) -> None:
    save_lora(trained(model_folder, dora), tmp_path)
    keys = set(load_file(tmp_path / KOHYA))
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= keys
    first, second = (read_pipeline(model_folder, torch.float32) for _ in range(2))
    assert merge_lora(first, tmp_path / FILE) == merge_lora(second, tmp_path / KOHYA)
    assert (outcome(first.denoiser) - outcome(second.denoiser)).abs().max() < 1e-5


@pytest.mark.parametrize("kohya", [False, True])
def test_the_pairs_of_the_text_encoder_are_saved_too(model_folder: Path, tmp_path: Path, kohya: bool) -> None:
    parts = trained(model_folder, text=True)
    save_lora(parts, tmp_path)
    file = tmp_path / (KOHYA if kohya else FILE)
    if kohya:
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in load_file(file)
    fresh = read_pipeline(model_folder, torch.float32)
    before = fresh.text.encode(["a red apple"]).hidden
    merge_lora(fresh, file)
    after, wanted = (p.text.encode(["a red apple"]).hidden for p in (fresh, parts))
    assert (after - wanted).abs().max() < 1e-5 and (after - before).abs().max() > 1e-3
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    theirs.load_lora_weights(file)
    ids = theirs.tokenizer(["a red apple"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (theirs.text_encoder(ids).last_hidden_state - wanted).abs().max() < 1e-5


def test_kohyas_alpha_scales(model_folder: Path, tmp_path: Path) -> None:
    save_lora(trained(model_folder), tmp_path)
    state = load_file(tmp_path / KOHYA)
    save_file({k: v / 2 if k.endswith(".alpha") else v for k, v in state.items()}, tmp_path / "half.safetensors")
    first, second = (read_pipeline(model_folder, torch.float32) for _ in range(2))
    merge_lora(first, tmp_path / FILE, scale=0.5)
    merge_lora(second, tmp_path / "half.safetensors")
    assert (outcome(first.denoiser) - outcome(second.denoiser)).abs().max() < 1e-5


def test_alpha_in_diffusers_metadata_scales(model_folder: Path, tmp_path: Path) -> None:
    save_lora(trained(model_folder), tmp_path)
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
    save_file(load_file(tmp_path / FILE), tmp_path / "half.safetensors", metadata=metadata)
    first, second = (read_pipeline(model_folder, torch.float32) for _ in range(2))
    merge_lora(first, tmp_path / FILE, scale=0.5)
    merge_lora(second, tmp_path / "half.safetensors")
    assert (outcome(first.denoiser) - outcome(second.denoiser)).abs().max() < 1e-6


def test_a_text_encoder_is_changed_too(model_folder: Path, tmp_path: Path) -> None:
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / FILE)
    parts = read_pipeline(model_folder, torch.float32)
    key = next(k for k in parts.text.encoders[0].state_dict() if k.endswith("layers.0.self_attn.q_proj.weight"))
    before = parts.text.encoders[0].state_dict()[key].clone()
    assert merge_lora(parts, tmp_path, scale=0.5) == 1
    assert torch.allclose(parts.text.encoders[0].state_dict()[key], before + 0.5 * up @ down, atol=1e-6)


def test_a_scale_of_zero_changes_nothing(model_folder: Path, tmp_path: Path) -> None:
    save_lora(trained(model_folder), tmp_path)
    parts = read_pipeline(model_folder, torch.float32)
    before = outcome(parts.denoiser)
    merge_lora(parts, tmp_path, scale=0.0)
    assert torch.equal(outcome(parts.denoiser), before)


def test_a_lora_without_matching_layers_is_an_error_and_unmatched_layers_are_a_warning(
    model_folder: Path, xl_folder: Path, tmp_path: Path
) -> None:
    save_lora(trained(model_folder), tmp_path)
    state = load_file(tmp_path / FILE)
    parts = read_pipeline(model_folder, torch.float32)
    elsewhere = {key.replace("unet.", "unet.far."): value for key, value in state.items()}
    save_file(elsewhere, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="matches none of this model's layers"):
        merge_lora(parts, tmp_path / "none.safetensors")
    renamed = {key.replace("unet.mid_block", "unet.far"): value for key, value in state.items()}
    save_file(renamed, tmp_path / "part.safetensors")
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    with pytest.warns(UserWarning, match=r"of \d+ layers do not exist in this model, for example unet\.far"):
        pipe.load_lora(tmp_path / "part.safetensors")


@pytest.mark.parametrize("name", ["gone", "empty", "text.safetensors", "other.safetensors"])
def test_other_files_are_not_loras(name: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError) as caught:
        merge_lora(read_pipeline(model_folder, torch.float32), tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_only_pairs_are_saved(model_folder: Path, tmp_path: Path) -> None:
    parts = trained(model_folder)
    save_lora(parts, tmp_path)
    assert len(load_file(tmp_path / FILE)) == len(get_peft_model_state_dict(parts.denoiser))
    assert all(".lora_" in key for key in load_file(tmp_path / FILE))


def test_a_magnitude_has_the_dimensions_of_its_weight(model_folder: Path, tmp_path: Path) -> None:
    """Those of the web interfaces divide it by norms [out, 1] or [out, 1, 1, 1]; [out] would spread over the inputs."""
    parts = trained(model_folder, dora=True)
    save_lora(parts, tmp_path)
    state = load_file(tmp_path / KOHYA)
    scales = {key.removesuffix(".dora_scale"): value for key, value in state.items() if key.endswith(".dora_scale")}
    assert scales
    for name, scale in scales.items():
        up, down = state[f"{name}.lora_up.weight"], state[f"{name}.lora_down.weight"]
        assert scale.shape == (len(up), *[1] * (down.dim() - 1))
    of_inputs = {
        key: value.T if key.endswith(".dora_scale") and value.dim() == 2 else value for key, value in state.items()
    }
    save_file({key: value.contiguous() for key, value in of_inputs.items()}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"numbers for .*, a weight of"):
        merge_lora(read_pipeline(model_folder, torch.float32), tmp_path / "other.safetensors")
