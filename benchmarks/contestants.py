"""The contestants: each is one function that takes a network and returns a call on the network's inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from benchmarks.networks import Network, weights
from latentdiff.runtime.device import DTYPES
from latentdiff.runtime.optimize import prepare

Call = Callable[[], Tensor]
PRECISIONS = ("bfloat16", "float32")
REFERENCE = "diffusers float32"


@dataclass(frozen=True)
class Contestant:
    """packages: those that must be installed. bytes_each: approximate memory per parameter."""

    make: Callable[[Network], Call]
    packages: tuple[str, ...]
    bytes_each: float

    @property
    def installed(self) -> bool:
        return all(find_spec(name) for name in self.packages)


def build(name: str, settings: str) -> Call:
    """The call that `benchmarks.worker` times."""
    return CONTESTANTS[name].make(TypeAdapter(Network).validate_json(settings))


def _inputs(network: Network, dtype: torch.dtype) -> list[Tensor]:
    return [x.to(network.device, dtype if x.is_floating_point() else x.dtype) for x in network.inputs()]


def _latentdiff(network: Network, dtype: torch.dtype, fast: bool) -> Call:
    with torch.device("meta"):
        model: nn.Module = network.network()
    model.load_state_dict(weights(network, dtype), assign=True)
    model.to(network.device).eval()
    if fast:
        prepare(model)
    return partial(network.ours(model), *_inputs(network, dtype))


def _their_module(network: Network, dtype: torch.dtype) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, network.diffusers_class).from_config(network.config.write())
    model.load_state_dict(weights(network, dtype), assign=True)
    return network.theirs(model.to(network.device)).eval()


def _diffusers(network: Network, dtype: torch.dtype, layout: torch.memory_format) -> Call:
    module = _their_module(network, dtype).to(memory_format=layout)  # type: ignore[call-overload]
    return partial(module, *_inputs(network, dtype))


def _compiled(network: Network, dtype: torch.dtype) -> Call:
    from torch._inductor import config

    config.freezing = True  # weights are constants, which inductor packs
    module = _their_module(network, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mode = "max-autotune" if torch.device(network.device).type == "cuda" else None
    return partial(torch.compile(module, mode=mode), *_inputs(network, dtype))


def _openvino(network: Network, precision: str) -> Call:
    import openvino

    if network.device != "cpu":
        raise RuntimeError(f"does not run on {network.device}")
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    with _exported(_to_openvino, network, "network.xml") as path:
        compiled = openvino.Core().compile_model(path, "CPU", hints)
    arrays = [x.numpy() for x in network.inputs()]
    return lambda: torch.from_numpy(compiled(arrays)[0])


def _to_openvino(network: Network, path: Path) -> None:
    import openvino

    inputs = network.inputs()
    shapes = [tuple(x.shape) for x in inputs]
    converted = openvino.convert_model(_their_module(network, torch.float32), example_input=inputs, input=shapes)
    openvino.save_model(converted, path, compress_to_fp16=False)


def _onnxruntime(network: Network) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = f"{torch.device(network.device).type.upper()}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {provider}")
    with _exported(_to_onnx, network, "network.onnx") as path:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    inputs = zip(session.get_inputs(), network.inputs(), strict=True)
    feed: dict[str, Any] = {node.name: x.numpy() for node, x in inputs}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _to_onnx(network: Network, path: Path) -> None:
    on_cpu = network.model_copy(update={"device": "cpu"})
    module = _their_module(on_cpu, torch.float32)
    torch.onnx.export(module, on_cpu.inputs(), path, dynamo=True, verbose=False)


@contextmanager
def _exported(export: Callable[[Network, Path], None], network: Network, name: str) -> Iterator[Path]:
    """The file that `export` writes, in a separate process because tracers keep references to the weights."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        process = get_context("spawn").Process(target=export, args=(network, path))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{export.__name__} ended with status {process.exitcode}; see its message above")
        yield path


def _whole_pictures_only(_: Network) -> Call:
    raise RuntimeError("generates complete pictures only")


def base(dtype: str) -> str:
    return f"diffusers {dtype} channels_last"


def compiled(dtype: str) -> str:
    return f"diffusers {dtype} compiled"


def _of_precision(name: str) -> dict[str, Contestant]:
    dtype = DTYPES[name]
    size = dtype.itemsize
    diffusers = ("diffusers",)
    return {
        base(name): Contestant(partial(_diffusers, dtype=dtype, layout=torch.channels_last), diffusers, size),
        f"latentdiff {name} prepared": Contestant(partial(_latentdiff, dtype=dtype, fast=True), (), 2 * size),
        f"OpenVINO {name}": Contestant(
            partial(_openvino, precision={"bfloat16": "bf16", "float32": "f32"}[name]),
            ("openvino", "diffusers"),
            1.5 * size,
        ),
        f"latentdiff {name} plain": Contestant(partial(_latentdiff, dtype=dtype, fast=False), (), size),
        f"diffusers {name}": Contestant(
            partial(_diffusers, dtype=dtype, layout=torch.contiguous_format), diffusers, size
        ),
        compiled(name): Contestant(partial(_compiled, dtype=dtype), diffusers, 3 * size),
    }


# Memory is assigned in this order, so the most important comparisons come first.
CONTESTANTS: dict[str, Contestant] = {
    **_of_precision("bfloat16"),
    **_of_precision("float32"),
    "ONNX Runtime float32": Contestant(_onnxruntime, ("onnxruntime", "onnx", "onnxscript", "diffusers"), 9),
    "stable-diffusion.cpp": Contestant(_whole_pictures_only, ("stable_diffusion_cpp",), 0),
}
OPT_IN = {compiled(dtype) for dtype in PRECISIONS}  # needs minutes before its first call
