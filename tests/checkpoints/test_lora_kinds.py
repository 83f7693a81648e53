"""Every kind of LoRA file against peft, diffusers or the closed form."""

import json
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.lora_names import aliases, layer_shapes
from latentdiff.checkpoints.lora_reader import FILE
from latentdiff.errors import CheckpointError
from tests.checkpoints.small_families import small_family

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"
OLD_NAMES = ("processor.to_q_lora", "to_q.lora", "to_q.lora_linear_layer")
KOHYA_LAYER, KOHYA_CONV = f"lora_unet_{LAYER.replace('.', '_')}", f"lora_unet_{CONV.replace('.', '_')}"


def pipeline(folder: Path, optimize: str = "off") -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32", optimize=optimize)


def weight(model: Any, name: str) -> Tensor:
    layer: Any = model.get_submodule(name)
    return layer.weight.detach().clone()


def change(
    state: dict[str, Tensor], name: str, folder: Path, tmp_path: Path, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A layer's weight, and the change by a file."""
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "x.safetensors")
    pipe = pipeline(folder)
    before = weight(pipe.denoiser, name)
    pipe.load_lora(tmp_path / "x.safetensors")
    return before, weight(pipe.denoiser, name) - before


@pytest.mark.parametrize("kind", [peft.LoHaConfig, peft.LoKrConfig, peft.LoraConfig])
def test_peft_adapters_are_read_from_a_separate_folder(kind: Any, model_folder: Path, tmp_path: Path) -> None:
    """LoHa, LoKr and rank-stabilised LoRA with alphas by layer, saved by peft without `unet.` in the names."""
    theirs = diffusers.UNet2DConditionModel.from_pretrained(model_folder / "unet")
    options: dict[str, Any] = {"r": 4, "target_modules": ["to_q", "conv1"], "alpha_pattern": {LAYER: 3}}
    if kind is peft.LoraConfig:
        options |= {"lora_alpha": 6, "use_rslora": True, "lora_bias": False, "init_lora_weights": False}
    else:
        options |= {"alpha": 6, "init_weights": False}
    adapted = peft.get_peft_model(theirs, kind(**options))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    pipe = pipeline(model_folder)
    pipe.load_lora(tmp_path / "adapter")
    for name in (LAYER, CONV, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"):
        assert torch.allclose(weight(pipe.denoiser, name), weight(merged, name), atol=1e-5)


def test_a_bias_of_peft_is_applied(model_folder: Path, tmp_path: Path) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(model_folder / "unet")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["proj_in"], lora_bias=True, init_lora_weights=False)
    adapted = peft.get_peft_model(theirs, config)
    adapted.save_pretrained(tmp_path / "adapter")
    merged, pipe = adapted.merge_and_unload(), pipeline(model_folder)
    name = "mid_block.attentions.0.proj_in"
    before = pipe.denoiser.get_submodule(name).bias.detach().clone()
    pipe.load_lora(tmp_path / "adapter", name="x")
    assert torch.allclose(pipe.denoiser.get_submodule(name).bias, merged.get_submodule(name).bias, atol=1e-6)
    pipe.unload_lora("x")
    assert torch.equal(pipe.denoiser.get_submodule(name).bias, before)


def test_tucker_lora_is_three_convolutions(model_folder: Path, tmp_path: Path) -> None:
    down, mid, up = torch.randn(3, 32, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(32, 3, 1, 1)
    state = {f"{KOHYA_CONV}.lora_down.weight": down, f"{KOHYA_CONV}.lora_mid.weight": mid}
    state |= {f"{KOHYA_CONV}.lora_up.weight": up, f"{KOHYA_CONV}.alpha": torch.tensor(1.5)}
    _, delta = change(state, CONV, model_folder, tmp_path)
    x = torch.randn(1, 32, 5, 5)
    wanted = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), mid, padding=1), up) / 2
    assert torch.allclose(nn.functional.conv2d(x, delta, padding=1), wanted, atol=1e-3)


@pytest.mark.parametrize("tucker", [False, True])
def test_lycoris_loha_and_lokr_of_convolutions(tucker: bool, model_folder: Path, tmp_path: Path) -> None:
    pairs = [(torch.randn(32, 2), torch.randn(2, 32 * 9)) for _ in range(2)]
    state = {f"{KOHYA_CONV}.hada_w{k}_{x}": pairs[k - 1][x == "b"] for k in (1, 2) for x in "ab"}
    wanted = (pairs[0][0] @ pairs[0][1]) * (pairs[1][0] @ pairs[1][1])
    if tucker:
        core, inner, outer = torch.randn(2, 2, 3, 3), torch.randn(2, 32), torch.randn(2, 32)
        kinds = {"hada_t1": core, "hada_t2": core, "hada_w1_a": outer, "hada_w2_a": outer}
        kinds |= {"hada_w1_b": inner, "hada_w2_b": inner}
        state = {f"{KOHYA_CONV}.{kind}": tensor.clone() for kind, tensor in kinds.items()}
        whole = torch.zeros(32, 32, 3, 3)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            whole += outer[i].view(-1, 1, 1, 1) * inner[j].view(1, -1, 1, 1) * core[i, j]
        wanted = whole.square().flatten(1)
    _, delta = change(state | {f"{KOHYA_CONV}.alpha": torch.tensor(1.0)}, CONV, model_folder, tmp_path)
    assert torch.allclose(delta.flatten(1), wanted / 2, atol=1e-4)
    small, large = torch.randn(4, 4), torch.randn(8, 8, 3, 3)
    _, delta = change({f"{KOHYA_CONV}.lokr_w1": small, f"{KOHYA_CONV}.lokr_w2": large}, CONV, model_folder, tmp_path)
    assert torch.allclose(delta[8:16, :8], small[1, 0] * large, atol=1e-5)


def test_full_differences_of_weights_biases_and_norms(model_folder: Path, tmp_path: Path) -> None:
    norm = "mid_block.resnets.0.norm1"
    full, bias, scale = torch.randn(32, 32, 3, 3), torch.randn(32), torch.randn(32)
    state = {
        f"{KOHYA_CONV}.diff": full,
        f"{KOHYA_CONV}.diff_b": bias,
        f"lora_unet_{norm.replace('.', '_')}.w_norm": scale,
    }
    save_file(state, tmp_path / "x.safetensors")
    pipe, base = pipeline(model_folder), pipeline(model_folder).denoiser
    pipe.load_lora(tmp_path / "x.safetensors", weight=0.5)
    conv = pipe.denoiser.get_submodule(CONV)
    assert torch.allclose(conv.weight, weight(base, CONV) + full / 2)
    assert torch.allclose(conv.bias, base.get_submodule(CONV).bias + bias / 2)
    assert torch.allclose(weight(pipe.denoiser, norm), weight(base, norm) + scale / 2)
    pipe.unload_lora()
    assert all(torch.equal(a, b) for a, b in zip(pipe.denoiser.parameters(), base.parameters(), strict=True))


def test_dora_along_the_inputs_as_lycoris_writes_it(model_folder: Path, tmp_path: Path) -> None:
    down, up = 0.1 * torch.randn(2, 32), 0.1 * torch.randn(32, 2)
    scale = torch.rand(1, 32) + 0.5
    state = {
        f"{KOHYA_LAYER}.lora_down.weight": down,
        f"{KOHYA_LAYER}.lora_up.weight": up,
        f"{KOHYA_LAYER}.dora_scale": scale,
    }
    before, delta = change(state, LAYER, model_folder, tmp_path)
    merged = before + up @ down
    assert torch.allclose(before + delta, scale * merged / merged.norm(dim=0, keepdim=True), atol=1e-5)


@pytest.mark.parametrize(
    "old", ["processor.to_q_lora.down.weight", "to_q.lora.down.weight", "to_q.lora_linear_layer.down.weight"]
)
def test_names_that_diffusers_used_before(old: str, model_folder: Path, tmp_path: Path) -> None:
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    stem = f"unet.{LAYER.removesuffix('to_q')}"
    _, delta = change({stem + old: down, stem + old.replace("down", "up"): up}, LAYER, model_folder, tmp_path)
    assert torch.allclose(delta, up @ down, atol=1e-5)


def test_sdxl_has_the_original_layout_and_two_text_encoders() -> None:
    parts = small_family("xl")
    names = aliases(layer_shapes(parts), parts.denoiser.config)
    to_q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert names["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"] == ("unet", to_q)
    assert names[f"unet.{to_q}"] == names[f"lora_unet_{to_q.replace('.', '_')}"] == ("unet", to_q)
    layer = "text_model.encoder.layers.1.mlp.fc1"
    for part, prefix in (("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2")):
        assert names[f"{prefix}_{layer.replace('.', '_')}"] == names[f"{part}.{layer}"] == (part, layer)


PAIR = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 32), f"unet.{LAYER}.lora_B.weight": torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {f"unet.{LAYER}.oft_blocks": torch.ones(2)},
            r"tensor .*oft_blocks does not belong to a supported kind of LoRA",
        ),
        ({f"unet.{CONV}.lora_A.weight": torch.ones(2, 32)}, r"the tensors of unet.* are incomplete \(down\)"),
        ({f"unet.{LAYER}.alpha": torch.ones(2)}, r"alpha must be one number, not \[2\]"),
        ({f"unet.{LAYER}.alpha": torch.tensor(float("inf"))}, "alpha=inf must be a finite number"),
        ({f"unet.{LAYER}.lora.down.weight": torch.ones(2, 32)}, "are the same tensor; remove one"),
        (
            {f"unet.{LAYER}.lora_B.weight": torch.ones(64, 2)},
            "another kind of model: unet.* is 64x32 there, 32x32 here",
        ),
        ({f"unet.{LAYER}.lora_B.weight": torch.ones(32, 3)}, "do not match each other"),
        ({f"unet.{LAYER}.lora_B.weight": torch.ones(0, 2)}, "is empty"),
        ({f"unet.{LAYER}.lora_B.weight": torch.full((32, 2), torch.inf)}, "up of .* contains NaN or infinite numbers"),
        ({f"unet.{LAYER}.lora_B.weight": torch.ones(32, 2).char()}, "up of .* contains int8, not floating-point"),
    ],
)
def test_tensors_are_applied_or_refused_by_name(
    extra: dict[str, Tensor], message: str, model_folder: Path, tmp_path: Path
) -> None:
    save_file(PAIR | extra, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        pipeline(model_folder).load_lora(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "contains list, not settings by name"),
        (None, "contains NoneType"),
        ({"unet.r": 2, "unet.lora_alpha": "4"}, "lora_alpha='4' must be a number"),
        ({"unet.r": 2, "unet.alpha_pattern": [1]}, "alpha_pattern contains list"),
        ({"unet.alpha_pattern": {"x": None}}, "alpha_pattern.x='None' must be a number"),
        ({"unet.alpha_pattern": {"a|b": 1}}, "only names are supported"),
        ({"unet.use_rslora": "yes"}, "use_rslora='yes' must be true or false"),
        ({"unet.layer_replication": [[0, 1]]}, "layer_replication=.* is not supported"),
        ({"unet.bias": "all"}, "bias='all' is not supported"),
        ({"unet.init_lora_weights": "pissa"}, "'pissa' changed the base weights"),
        ({"unet.peft_type": "VERA"}, "peft_type='VERA' is not supported"),
        ({"r": 2, "bias": "all"}, "lora_adapter_metadata.bias='all' is not supported"),
        ({"transformer.r": 2}, "has settings of 'transformer'; only unet, text_encoder, text_encoder_2 are supported"),
    ],
)
def test_settings_are_applied_or_refused_by_name(
    metadata: Any, message: str, model_folder: Path, tmp_path: Path
) -> None:
    save_file(PAIR, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=message) as caught:
        pipeline(model_folder).load_lora(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"alpha_pattern": {LAYER: 16}}, {"lora_alpha": 3}])
def test_diffusers_metadata_is_applied_as_diffusers_does(
    settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(model_folder)
    config = peft.LoraConfig(
        **({"r": 2, "lora_alpha": 4, "target_modules": ["to_q"], "init_lora_weights": False} | settings)
    )
    theirs.unet.add_adapter(config)
    layers = peft.get_peft_model_state_dict(theirs.unet)
    theirs.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict())
    assert "lora_adapter_metadata" in json.dumps(dict(_metadata(tmp_path / FILE)))
    theirs.unload_lora_weights()
    theirs.load_lora_weights(tmp_path)
    theirs.fuse_lora()
    ours = pipeline(model_folder)
    ours.load_lora(tmp_path)
    assert torch.allclose(weight(ours.denoiser, LAYER), theirs.unet.get_submodule(LAYER).base_layer.weight, atol=1e-5)


def test_settings_of_a_u_net_saved_alone_have_no_prefix(model_folder: Path, tmp_path: Path) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(model_folder / "unet")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False, use_rslora=True, alpha_pattern={LAYER: 32}
    )
    theirs.add_adapter(config)
    theirs.save_lora_adapter(tmp_path)
    assert json.loads(_metadata(tmp_path / FILE)["lora_adapter_metadata"])["use_rslora"] is True
    theirs.fuse_lora()
    ours = pipeline(model_folder)
    ours.load_lora(tmp_path)
    for name in (LAYER, LAYER.replace("attn1", "attn2")):
        assert torch.allclose(weight(ours.denoiser, name), theirs.get_submodule(name).base_layer.weight, atol=1e-5)


def test_a_folder_s_setting_is_named_before_the_tensors_that_it_explains(model_folder: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(
        diffusers.UNet2DConditionModel.from_pretrained(model_folder / "unet"),
        peft.LoraConfig(target_modules=["to_q"], modules_to_save=["conv_out"]),
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"adapter_config.json.modules_to_save=\['conv_out'\] is not supported"):
        pipeline(model_folder).load_lora(tmp_path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return dict(opened.metadata())
