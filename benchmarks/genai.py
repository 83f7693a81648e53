"""OpenVINO GenAI's text-to-image pipeline, from a diffusers folder that is converted to its layout.

The networks are converted by `openvino.convert_model`, the tokenizer by `openvino_tokenizers`, because optimum-intel,
which usually does this, cannot be installed beside the present transformers. GenAI knows fewer noise schedules than
diffusers; Stable Diffusion's is written for every model, which changes pictures but not their time.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


class Traced(nn.Module):
    """A module that is called on tensors only and returns one tensor."""

    def __init__(self, module: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


def open_pipeline(folder: Path, dtype: str) -> Any:
    """GenAI's pipeline of a diffusers folder, on the CPU with the present number of threads."""
    import openvino_genai

    hints = {
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    with _converted(folder) as converted:
        return openvino_genai.Text2ImagePipeline(converted, "CPU", **hints)


@contextmanager
def _converted(folder: Path) -> Iterator[Path]:
    """The folder in GenAI's layout, written by another process, because tracers keep references to the weights."""
    with TemporaryDirectory() as temporary:
        process = get_context("spawn").Process(target=convert, args=(folder, Path(temporary)))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"converting {folder} ended with status {process.exitcode}; see its message above")
        yield Path(temporary)


def convert(folder: Path, output: Path) -> None:
    """Write a folder that GenAI opens, in float32."""
    import diffusers
    import openvino
    from openvino_tokenizers import convert_tokenizer

    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    unet, vae, text = pipe.unet.eval(), pipe.vae.eval(), pipe.text_encoder.eval()
    tokens = text.config.max_position_embeddings
    latents = torch.zeros(2, unet.config.in_channels, 16, 16)
    hidden = torch.zeros(2, tokens, unet.config.cross_attention_dim)
    networks = {
        "text_encoder": (
            Traced(text, lambda ids: text(ids)[0]),
            {"input_ids": torch.zeros(1, tokens, dtype=torch.int64)},
            "last_hidden_state",
        ),
        "unet": (
            Traced(unet, lambda x, t, hidden: unet(x, t, hidden, return_dict=False)[0]),
            {"sample": latents, "timestep": torch.tensor([500]), "encoder_hidden_states": hidden},
            "out_sample",
        ),
        "vae_decoder": (
            Traced(vae, lambda z: vae.decode(z, return_dict=False)[0]),
            {"latent_sample": latents[:1]},
            "sample",
        ),
    }
    for name, (module, inputs, result) in networks.items():
        with torch.no_grad():
            model = openvino.convert_model(module, example_input=tuple(inputs.values()))
        for port, title in zip([*model.inputs, *model.outputs], [*inputs, result], strict=True):
            port.get_tensor().set_names({title})
        model.validate_nodes_and_infer_types()
        openvino.save_model(model, output / name / "openvino_model.xml", compress_to_fp16=False)
        source = folder / ("vae" if name == "vae_decoder" else name)
        shutil.copyfile(source / "config.json", output / name / "config.json")
    openvino.save_model(convert_tokenizer(pipe.tokenizer), output / "tokenizer" / "openvino_tokenizer.xml")
    shutil.copyfile(folder / "model_index.json", output / "model_index.json")
    (output / "scheduler").mkdir()
    (output / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER), encoding="utf-8")
