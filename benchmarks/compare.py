"""One call of a network by every contestant: the turns, the errors and the table."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import roofline
from benchmarks.contestants import BASE, CONTESTANTS, OPT_IN, REFERENCE
from benchmarks.machine import free_memory
from benchmarks.networks import Network, flops, parameters
from benchmarks.report import table, write
from benchmarks.turns import ENVIRONMENT, Turn, Worker, alternate, fastest, median, passes
from latentdiff.runtime import pick_device

ROOFLINE_BYTES = 2**30


@dataclass
class Comparison:
    """Turns by contestant, why the others have none, relative errors, and who shared the memory with whom."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", help="parts of names; all but the compiled one by default")
    parser.add_argument("--base", default=BASE, choices=CONTESTANTS, help="whose time the ratios are of")


def chosen(peers: list[str] | None) -> list[str]:
    """We, and the contestants that have one of `peers` in their name."""
    if peers is None:
        return [name for name in CONTESTANTS if name not in OPT_IN]
    return [name for name in CONTESTANTS if any(part.lower() in name.lower() for part in ["latentdiff", *peers])]


def compare(network: Network, names: list[str], rounds: int) -> Comparison:
    """Measure those of `names` that are installed, as many in memory together as fit, each lot with the product."""
    found = Comparison()
    found.notes = {name: CONTESTANTS[name].absent for name in names if not CONTESTANTS[name].installed}
    size, device = parameters(network), torch.device(network.device)
    needs = {name: CONTESTANTS[name].bytes_each * size for name in names if name not in found.notes}
    # Room for the float32 weights that every contestant starts from.
    found.together = passes(needs, free_memory(device) - 8 * size - ROOFLINE_BYTES)
    with TemporaryDirectory() as folder:
        for group in found.together:
            _measure(found, network, group, rounds, Path(folder))
        outputs = {path.stem: torch.load(path).float().cpu() for path in Path(folder).glob("*.pt")}
    if REFERENCE in outputs:
        exact = outputs[REFERENCE]
        found.errors = {name: float((out - exact).norm() / exact.norm()) for name, out in outputs.items()}
    return found


def _measure(found: Comparison, network: Network, group: list[str], rounds: int, folder: Path) -> None:
    with ExitStack() as kept:
        workers = {}
        for name in [*group, roofline.NAME]:
            module = "benchmarks.roofline" if name == roofline.NAME else "benchmarks.contestants"
            settings = network.device if name == roofline.NAME else network.model_dump_json()
            worker = Worker(name, "benchmarks.worker", module, name, settings, environment=ENVIRONMENT)
            workers[name] = kept.enter_context(worker)
            try:
                worker.ask("" if name == roofline.NAME else str(folder / f"{name}.pt"))
                worker.ask("")
            except RuntimeError as error:
                found.notes[name] = str(error)
                del workers[name]
        for name, turns in alternate({name: _turn(worker) for name, worker in workers.items()}, rounds).items():
            found.turns.setdefault(name, []).extend(turns)


def _turn(worker: Worker) -> Callable[[], Turn]:
    return lambda: Turn(**worker.ask(""))


def tabulate(found: Comparison, operations: int, base: str, device: str) -> str:
    """Operations: floating-point ones of a call. The matrix product's rate is what the share is of."""
    highest = roofline.flops(device) / median(found.turns[roofline.NAME])
    header = ["", "median s", "min s", f"of {base}", "TFLOP/s", "of matrix product", "relative error"]
    rows = []
    for name in CONTESTANTS:
        if name in found.turns:
            rows.append([name, *_cells(found, name, operations, base, highest)])
        elif name in found.notes:
            rows.append([name, found.notes[name], *[""] * (len(header) - 2)])
    products = found.turns[roofline.NAME]
    seconds = [f"{median(products):.4f}", f"{fastest(products):.4f}"]
    rows.append([roofline.NAME, *seconds, "", f"{highest / 1e12:.2f}", "1.00", ""])
    return table(header, rows)


def _cells(found: Comparison, name: str, operations: int, base: str, highest: float) -> list[str]:
    turns: Mapping[str, list[Turn]] = found.turns
    own, rate = median(turns[name]), operations / median(turns[name])
    ratio = f"{own / median(turns[base]):.2f}" if base in turns else ""
    error = f"{found.errors[name]:.4f}" if name in found.errors else ""
    return [f"{own:.4f}", f"{fastest(turns[name]):.4f}", ratio, f"{rate / 1e12:.2f}", f"{rate / highest:.2f}", error]


def run(what: str, about: str, network: Network, given: argparse.Namespace) -> None:
    """Measure, print and write."""
    found = compare(network, chosen(given.peers), given.rounds)
    operations = flops(network)
    lots = "; then ".join(", ".join(group) for group in found.together)
    about += (
        f"; {operations / 1e12:.3f} TFLOP a call. A process each, in turns of at least half a second, {given.rounds} "
        f"rounds after one to warm up; relative error: L2, of {REFERENCE}. In memory together: {lots}."
    )
    write(what, about, tabulate(found, operations, given.base, network.device), pick_device(network.device))
