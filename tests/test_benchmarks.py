"""The benchmarks run; speed is not tested."""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import coldstart, contestants, machine, memory, networks, numerics, pipeline, report, roofline, training
from benchmarks import contest as contests
from benchmarks.compare import chosen, compare, tabulate
from benchmarks.contest import Contest, Entry, run_contest
from benchmarks.contestants import CONTESTANTS, OPT_IN, PRECISIONS, REFERENCE
from benchmarks.training_shapes import ENDS, Shape, emoji
from benchmarks.turns import Turn, Worker, alternate, passes
from latentdiff.checkpoints.locate_model import locate
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime import native
from tests.small import read_weights, small_unet_config, small_vae_config


def small_shape() -> Shape:
    text = CLIPTextConfig(
        vocab_size=8000, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, **ENDS,
    )  # fmt: skip
    return Shape(name="small", unet=small_unet_config(), vae=small_vae_config(), text=text, batch=2, latents=8)


@pytest.mark.slow
def test_training_measures_every_side() -> None:
    figures = training.measure(small_shape(), rounds=2, steps=1)
    assert list(figures) == ["diffusers", "diffusers, cached", "latentdiff"]
    for found in figures.values():
        assert len(found.seconds) == 2 and min(found.seconds) > 0
        assert found.peak_gib > 0 and 0 < found.loading_share < 1
    assert training.tabulate(figures).count("\n") == 4


@pytest.mark.slow
def test_training_measures_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SIDES", ["latentdiff"])
    figures = training.measure(small_shape(), rounds=1, steps=2, together=False)
    assert len(figures["latentdiff"].seconds) == 2


def test_the_large_shape_is_that_of_stable_diffusion() -> None:
    with torch.device("meta"):
        unets = UNet2DConditionModel(Shape().unet), diffusers.UNet2DConditionModel.from_config(Shape().unet.write())
    assert [sum(p.numel() for p in unet.parameters()) for unet in unets] == [859_520_964] * 2
    assert Shape().resolution == 512


def test_the_bundled_shape_is_that_of_its_recipe() -> None:
    shape = emoji()
    assert (shape.batch, shape.latents, shape.resolution, shape.unet.in_channels) == (64, 16, 128, 8)


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
    "use_linear_projection": True,
}
SMALL = {
    "unet": networks.UNet(config=small_unet_config(), latents=8, tokens=5),
    "unet of XL": networks.UNet(config=small_unet_config(**XL), latents=8, tokens=5),
    "decoder": networks.Decoder(config=small_vae_config(), size=16),
}
BASE = contestants.base("bfloat16")
IN_TORCH = [
    name.format(dtype=dtype)
    for dtype in PRECISIONS
    for name in (
        "diffusers {dtype} channels_last",
        "diffusers {dtype}",
        "latentdiff {dtype} prepared",
        "latentdiff {dtype} plain",
    )
]


def output(name: str, network: networks.Network) -> torch.Tensor:
    with torch.no_grad():
        return contestants.build(name, network.model_dump_json())().float()


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("name", IN_TORCH)
def test_contestants_compute_the_same(name: str, network: networks.Network) -> None:
    exact = network.ours(network.network())
    exact.model.load_state_dict(networks.weights(network, torch.float32))
    with torch.no_grad():
        torch.testing.assert_close(output(name, network), exact(*network.inputs()), rtol=0.05, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OpenVINO bfloat16", "OpenVINO float32", "ONNX Runtime float32", *sorted(OPT_IN)])
def test_contestants_outside_torch_compute_the_same(name: str) -> None:
    if not CONTESTANTS[name].installed:
        pytest.skip(f"{name} is not installed")
    network = SMALL["unet of XL"]
    torch.testing.assert_close(output(name, network), output(REFERENCE, network), rtol=0.05, atol=0.03)


@pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)
def test_operations_are_those_of_diffusers(network: networks.Network) -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = getattr(diffusers, network.diffusers_class).from_config(network.config.write())
        network.theirs(model)(*(x.to("meta") for x in network.inputs()))
    assert networks.flops(network) == counter.get_total_flops() > 0
    doubled = network.model_copy(update={"batch": 2 * network.batch})
    assert networks.flops(doubled) == pytest.approx(2 * networks.flops(network), rel=0.01)


@pytest.mark.parametrize(("shape", "count"), [("sd15", 859_520_964), ("sd2", 865_910_724), ("sdxl", 2_567_463_684)])
def test_shapes_have_the_parameters_of_the_published_models(shape: str, count: int) -> None:
    assert networks.parameters(networks.unet(shape)) == count


def test_shapes_default_to_the_size_they_were_trained_at() -> None:
    assert [networks.unet(shape).latents for shape in ("sd15", "sdxl", "emoji")] == [64, 128, 16]
    assert networks.unet("sd15", 32).latents == 32
    assert [networks.decoder(shape).size for shape in ("sd15", "emoji")] == [512, 128]


def test_weights_are_the_same_each_time() -> None:
    first, second = (networks.weights(SMALL["unet"], torch.float32) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_contestants_take_turns() -> None:
    order: list[str] = []
    found = alternate({name: lambda name=name: order.append(name) or len(order) for name in "abc"}, 2)  # type: ignore[misc]
    assert order == list("abcabc")
    assert found == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}


def test_groups_of_contestants_fit_into_memory() -> None:
    assert passes({"a": 5, "b": 5, "c": 1, "d": 20, "e": 2}, 10) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert passes({}, 10) == []


def test_peers_are_chosen_by_a_part_of_their_names() -> None:
    ours = ["latentdiff bfloat16 prepared", "latentdiff bfloat16 plain"]
    assert chosen([], "bfloat16") == ours
    assert set(chosen(["openvino"], "bfloat16")) == {*ours, "OpenVINO bfloat16"}
    assert set(chosen([REFERENCE], "bfloat16")) == {*ours, REFERENCE}
    assert {"bfloat16" in name for name in chosen(None, "float32")} == {False}
    assert contestants.compiled("float32") in chosen(["openvino", "compiled"], "float32")
    assert contestants.compiled("float32") not in chosen(["diffusers"], "float32")
    assert not OPT_IN & {*chosen(None, "bfloat16"), *chosen(None, "float32")}


def test_table_has_a_cell_for_each_column() -> None:
    assert report.table(["", "s"], [["a", "1"]]) == "|  | s |\n| --- | --- |\n| a | 1 |"
    with pytest.raises(ValueError, match="2 cells"):
        report.table(["", "s"], [["a"]])


def test_rows_have_ratios_rates_and_notes() -> None:
    product = roofline.name("bfloat16")
    contest = Contest({BASE: [Turn([2.0, 4.0], 0), Turn([3.0], 0)], product: [Turn([1.0], 0)]})
    contest.turns["latentdiff bfloat16 prepared"] = [Turn([1.5], 0)]
    contest.notes["OpenVINO bfloat16"] = "not installed"
    operations = 3 * roofline.flops("cpu")
    lines = tabulate(contest, {BASE: 0.01}, operations, "bfloat16", "cpu").splitlines()
    rate = roofline.flops("cpu") / 1e12
    assert lines[2] == f"| {BASE} | 3 | 2 | 1.00 | {rate:.2f} | 1.00 | 0.0100 |"
    assert lines[3] == f"| latentdiff bfloat16 prepared | 1.5 | 1.5 | 0.50 | {2 * rate:.2f} | 2.00 |  |"
    assert lines[4] == "| OpenVINO bfloat16 | not installed |  |  |  |  |  |"
    assert lines[5].startswith(f"| {product} | 1 | 1 |  |")


def test_the_operations_of_the_matrix_product_are_counted_correctly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.SIZES, "cpu", (64, 32, 16))
    for dtype in PRECISIONS:
        product = roofline.build(roofline.name(dtype), "cpu")()
        assert product.shape == (64, 16) and str(product.dtype) == f"torch.{dtype}"
    assert roofline.flops("cpu") == 2 * 64 * 32 * 16


def test_a_report_names_hardware_versions_and_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/unet.py", "--batch", "4", str(tmp_path / "runs"), "a/b"])
    path = report.write("unet_small", "A call.", "| table |", torch.device("cpu"))
    text = path.read_text(encoding="utf-8")
    assert path.name.startswith("unet_small_") and path.parent == tmp_path / "results"
    for part in (
        "A call.",
        "| table |",
        "`python -m benchmarks.unet --batch 4 runs a/b`",
        f"torch {torch.__version__}",
    ):
        assert part in text


def test_an_unavailable_device_is_a_one_line_error() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="try cpu"):
        machine.device_option("cuda:99")


@pytest.mark.slow
def test_a_comparison_names_absent_and_failed_contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["latentdiff bfloat16 plain", REFERENCE, "stable-diffusion.cpp"]
    contest, errors = compare(SMALL["unet"], names, "bfloat16", rounds=1)
    assert contest.notes == {"stable-diffusion.cpp": "not installed"}
    assert contest.together == [names[:2]] or contest.together == [[name] for name in names[:2]]
    assert set(contest.turns) == {*names[:2], roofline.name("bfloat16")}
    assert errors[REFERENCE] == 0 < errors[names[0]] < 0.05
    entry = Entry("benchmarks.contestants", SMALL["unet"].model_dump_json())
    failed = run_contest({"stable-diffusion.cpp": entry}, 1, 0)
    assert failed.notes == {"stable-diffusion.cpp": "RuntimeError: generates complete pictures only"}
    assert not failed.turns


@pytest.mark.slow
def test_pictures_of_random_weights_come_from_both(tmp_path: Path) -> None:
    pipeline.write_random_model(small_shape(), tmp_path / "small")
    contest = pipeline.measure(
        pipeline.Picture(folder=tmp_path / "small", steps=2), ["diffusers bfloat16", "latentdiff bfloat16"], rounds=1
    )
    assert not contest.notes
    assert list(contest.turns) == ["diffusers bfloat16", "latentdiff bfloat16"]
    assert pipeline.tabulate(contest).count("\n") == 3


@pytest.mark.slow
def test_openvino_genai_generates_pictures_of_the_bundled_model() -> None:
    pytest.importorskip("openvino_genai", reason="needs the bench extra")
    picture = pipeline.Picture(folder=locate(None), steps=1, batch=2, size=64)
    contest = pipeline.measure(picture, ["OpenVINO-GenAI float32"], rounds=1)
    assert not contest.notes and list(contest.turns) == ["OpenVINO-GenAI float32"]


def test_a_process_is_measured_until_it_exits() -> None:
    turn = coldstart.start([sys.executable, "-c", "x = bytearray(2**26)"])
    assert turn.seconds[0] > 0 and turn.peak_bytes > 2**26
    with pytest.raises(RuntimeError, match="status 3: why"):
        coldstart.start([sys.executable, "-c", "import sys; sys.stderr.write('why'); sys.exit(3)"])


@pytest.mark.slow
def test_cold_starts_of_the_bundled_model() -> None:
    turns = coldstart.measure(machine.RESULTS.parents[1] / "weights" / "emoji", "cpu", steps=1, rounds=1)
    assert list(turns) == [coldstart.BASE, "latentdiff generate", "latentdiff --help"]
    assert coldstart.tabulate(turns).count("\n") == 4


def test_the_peak_of_simultaneously_live_tensors_is_counted() -> None:
    weight = torch.zeros(100, 100)
    with memory.Alive([weight]) as alive:
        a = torch.ones(1000)  # 4000 bytes
        a = a + 1  # 8000 temporarily
        assert alive.peak == 8000
        b = a.view(10, 100) @ weight.t()  # views need no memory, the product 4000
        assert alive.peak == 8000
        c = torch.cat([a, b.flatten()])  # 4000 + 4000 + 8000
        assert alive.peak == 16000
        del a, b, c
        torch.ones(3000)
    assert alive.peak == 16000


def test_memory_is_reported_relative_to_the_need() -> None:
    turns = {memory.LIBRARIES: [Turn([1.0], 2**30)], "latentdiff": [Turn([3.0], 2 * 2**30), Turn([1.0], 4 * 2**30)]}
    lines = memory.tabulate(turns, 2 * 2**30).splitlines()
    assert lines[2] == f"| {memory.LIBRARIES} | 1 | 1.000 |  |  |"
    assert lines[3] == "| latentdiff | 2 | 4.000 | 2.00 | 1.50 |"


@pytest.mark.slow
def test_memory_of_every_side_is_measured(model_folder: Path) -> None:
    weights, activations = memory.need(model_folder, "float32", None)
    stored = sum(path.stat().st_size for path in model_folder.rglob("*.safetensors"))
    assert 0.8 * stored < weights < stored and activations > 0
    turns = memory.measure(model_folder, "float32", steps=1, size=None, rounds=1)
    assert list(turns) == [memory.LIBRARIES, "latentdiff", "latentdiff --low-memory", "diffusers"]
    assert all(turn.peak_bytes > 2**26 for own in turns.values() for turn in own)


def test_a_contestant_over_the_time_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "for line in sys.stdin:\n"
        "    print(f'{{\"child\": {child.pid}}}') if line.strip() else child.wait()\n"
        "    sys.stdout.flush()\n"
    )
    with Worker("slow", "sleeper", environment={"PYTHONPATH": str(tmp_path)}) as worker:
        child = worker.ask("who?")["child"]
        with pytest.raises(RuntimeError, match="no response in 1 s; excluded"):
            worker.ask("", limit=1)
        with pytest.raises(RuntimeError, match="ended with status -9"):
            worker.ask("", limit=60)
    deadline = time.monotonic() + 30  # the system ends a killed process a little later
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_contestant_that_fails_in_a_later_round_has_a_note_and_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(contests.Worker):
        def __init__(self, name: str, *_: object, **__: object) -> None:
            self.name, self.count = name, 0

        def __exit__(self, *_: object) -> None: ...

        def ask(self, line: str, limit: float | None = None) -> dict[str, Any]:
            self.count += 1
            if self.name == "bad" and self.count == 3:
                raise RuntimeError("no response in 9 s; excluded")
            return {"seconds": [1.0], "peak_bytes": 0}

    monkeypatch.setattr(contests, "Worker", Fails)
    found = run_contest({"good": Entry("", ""), "bad": Entry("", "")}, 3, 1.0, limit=9)
    assert found.notes == {"bad": "no response in 9 s; excluded"}
    assert list(found.turns) == ["good"] and len(found.turns["good"]) == 3


def test_numerics_cover_every_level_and_leave_the_model_unchanged() -> None:
    network = SMALL["unet of XL"]
    found = numerics.errors(numerics.outputs(numerics.model_of("small", network), network, compiled=False))
    assert list(found) == ["off", "auto"] and all(0 < value < 0.05 for value in found.values())
    same = numerics.errors(iter([("float32", torch.ones(3)), ("off", torch.tensor([1.0, 1.0, 2.0]))]))
    assert same == {"off": pytest.approx(3**-0.5)}


def test_numerics_of_the_bundled_model_are_of_its_own_weights() -> None:
    model = numerics.model_of("emoji", networks.unet("emoji"))
    wanted = read_weights(locate(None) / "unet")
    assert all(torch.equal(value, wanted[key].float()) for key, value in model.state_dict().items())


def test_a_result_names_the_kernels_in_use_and_the_limits_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/unet.py", "--folder", "/home/me/model"])
    for name, value in ((native.SWITCH, "off"), ("ONEDNN_MAX_CPU_ISA", "AVX2")):
        monkeypatch.setenv(name, value)
    native._load.cache_clear()
    try:
        path = report.write("unet", "About.", "| |", torch.device("cpu"))
    finally:
        native._load.cache_clear()
    assert "-no-kernels_" in path.name and " " not in path.name and "(R)" not in path.name
    command = "LATENTDIFF_KERNELS=off ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.unet --folder model"
    assert path.read_text().endswith(f"\n\n`{command}`\n")
