"""Arguments with diffusers' names: accepted if they mean the same here; otherwise an error names the alternative."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latentdiff.errors import InputError, did_you_mean
from latentdiff.sampling.loop import StepInfo

OURS = {  # Arguments of diffusers that are not accepted, and what to use instead.
    "timesteps": "num_inference_steps= and spacing=",
    "sigmas": "num_inference_steps= and spacing=",
    "guidance_rescale": "guidance_interval=, which prevents over-saturation in another way",
    "cross_attention_kwargs": "load_lora(weight=...) or set_adapters()",
    "negative_prompt_embeds": "negative_prompt=",
    "prompt_embeds": "prompt=",
    "return_dict": "the returned PipelineOutput",
    "callback_steps": "callback=, which is called at every step",
    "callback_on_step_end_tensor_inputs": "callback=, whose StepInfo contains latents and x0",
    "revision": "owner/name@revision as the path",
    "cache_dir": "the environment variable HF_HOME",
    "scheduler": "sampler= and spacing= in the call",
    "device_map": "device=",
    "custom_pipeline": "a subclass of LatentDiffusionPipeline",
}


def call_arguments(given: dict[str, Any], images: int, ours: dict[str, Any]) -> dict[str, Any]:
    """Convert `generator` to seeds and `callback_on_step_end` to a callback.

    images: the number of images of the call. ours: our own arguments `seed` and `callback`. Raises InputError for other
    names, if both names of an argument are given, and for values that would not have the same effect as in diffusers.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name == "generator":
            found["seed"] = _seeds(value, images)
        elif name == "callback_on_step_end":
            found["callback"] = _callback(value)
        else:
            raise _unknown(name, ["generator", "callback_on_step_end"])
    for theirs, name in (("generator", "seed"), ("callback_on_step_end", "callback")):
        if name in found and ours[name] is not None:
            raise InputError(f"{theirs}= and {name}= have the same meaning; omit one of them")
    return found


def open_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Convert `torch_dtype` to dtype, and accept options of diffusers that are always in effect here.

    Raises InputError for other names.
    """
    found: dict[str, Any] = {}
    always = {"safety_checker": None, "use_safetensors": True, "local_files_only": None, "feature_extractor": None}
    for name, value in given.items():
        if name == "torch_dtype":
            found["dtype"] = value
        elif name not in always or value != always[name]:
            raise _unknown(name, ["torch_dtype"])
    return found


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a dtype given as `torch.float16` or "float16"."""
    return str(dtype).removeprefix("torch.")


def _seeds(generators: torch.Generator | Sequence[torch.Generator], images: int) -> list[int]:
    """The seeds of unused CPU generators, one per image, which give the same noise."""
    many = [generators] if isinstance(generators, torch.Generator) else list(generators)
    if len(many) != images:
        raise InputError(f"generator= has {len(many)} generators for {images} images; use one per image, or seed=")
    for generator in many:
        fresh = torch.Generator().manual_seed(generator.initial_seed() % 2**32)
        if generator.device.type != "cpu" or not torch.equal(fresh.get_state(), generator.get_state()):
            raise InputError("generator= must be a CPU generator that has drawn nothing yet; use seed= instead")
    return [generator.initial_seed() for generator in many]


def _callback(function: Callable[..., Any]) -> Callable[[StepInfo], bool | None]:
    def call(info: StepInfo) -> None:
        returned = function(None, info.step - 1, info.timestep, {"latents": info.latents})
        latents: Tensor | None = (returned or {}).get("latents")
        if latents is not None and latents is not info.latents:
            raise InputError("callback_on_step_end changes latents, which is not supported; write a denoiser instead")

    return call


def _unknown(name: str, accepted: Sequence[str]) -> InputError:
    if name in OURS:
        return InputError(f"{name}= is an argument of diffusers; use {OURS[name]} here")
    return InputError(f"{name}= is not an argument; {did_you_mean(name, [*accepted, *OURS])}")
