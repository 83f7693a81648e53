"""Compare one call of a network between all contestants: options, timing, errors and the table."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import roofline
from benchmarks.contest import Contest, Entry, run_contest
from benchmarks.contestants import CONTESTANTS, OPT_IN, PRECISIONS, REFERENCE, base
from benchmarks.machine import device_option, free_memory
from benchmarks.networks import Network, flops, parameters
from benchmarks.report import seconds_cells, table, write
from benchmarks.turns import median
from latentdiff.runtime.device import pick_dtype

ACTIVATIONS = 2**30  # approximate bytes of a call and of the libraries
SINGLE_PRECISION = (REFERENCE, "ONNX Runtime float32", "stable-diffusion.cpp")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", type=device_option)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=300, help="seconds to wait for a result of a contestant")
    parser.add_argument(
        "--peers", nargs="*", help=f"parts of the names of contestants; by default all but {', '.join(OPT_IN)}"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", *PRECISIONS],
        help="auto is what latentdiff's dtype='auto' picks here",
    )
    parser.add_argument(
        "--base",
        choices=CONTESTANTS,
        help="contestant whose time the ratios are relative to; by default diffusers in channels_last",
    )


def chosen(peers: list[str] | None, dtype: str) -> list[str]:
    """latentdiff, and the contestants whose names contain one of `peers`, in `dtype` or with their only precision."""
    names = [name for name in CONTESTANTS if dtype in name or name in SINGLE_PRECISION]
    if "compiled" not in (peers or []):
        names = [name for name in names if name not in OPT_IN]
    if peers is None:
        return names
    return [name for name in names if any(part.lower() in name.lower() for part in ["latentdiff", *peers])]


def compare(
    network: Network, names: list[str], dtype: str, rounds: int, limit: float | None = None
) -> tuple[Contest, dict[str, float]]:
    """Turns of those of `names` that are installed, and their relative errors ||y - y_exact|| / ||y_exact||."""
    size, settings = parameters(network), network.model_dump_json()
    entries = {
        name: Entry("benchmarks.contestants", settings, contestant.bytes_each * size + ACTIVATIONS)
        for name, contestant in CONTESTANTS.items()
        if name in names and contestant.installed
    }
    # Memory for the float32 weights that a contestant starts from, and for what other contestants still occupy.
    free = free_memory(torch.device(network.device)) - 8 * size
    product = {roofline.name(dtype): Entry("benchmarks.roofline", network.device)}
    with TemporaryDirectory() as folder:
        contest = run_contest(entries, rounds, free, always=product, outputs=Path(folder), limit=limit)
        paths = {name: Path(folder) / f"{name}.pt" for name in entries if name in contest.turns}
        outputs = {name: torch.load(path, map_location="cpu").float() for name, path in paths.items()}
    contest.notes |= {name: "not installed" for name in names if name not in entries}
    exact = outputs.get(REFERENCE)
    if exact is None:
        return contest, {}
    return contest, {name: float((out - exact).norm() / exact.norm()) for name, out in outputs.items()}


def tabulate(
    contest: Contest, errors: dict[str, float], operations: int, dtype: str, device: str, relative_to: str | None = None
) -> str:
    """A row for each contestant and for the matrix product that rates are compared with. operations: of one call."""
    first, product = relative_to or base(dtype), roofline.name(dtype)
    header = ["", "median s", "min s", f"of {first}", "TFLOP/s", "of matrix product", "relative error"]
    peak = roofline.flops(device) / median(contest.turns[product])
    rows = []
    for name in [*CONTESTANTS, product]:
        if name in contest.turns:
            work = roofline.flops(device) if name == product else operations
            rate = work / median(contest.turns[name])
            error = f"{errors[name]:.4f}" if name in errors else ""
            cells = seconds_cells(contest.turns, name, "" if name == product else first)
            rows.append([name, *cells, f"{rate / 1e12:.2f}", f"{rate / peak:.2f}", error])
        elif name in contest.notes:
            rows.append([name, contest.notes[name], *[""] * (len(header) - 2)])
    return table(header, rows)


def run(what: str, about: str, network: Network, given: argparse.Namespace) -> None:
    """Measure, print the report and write it to a file."""
    dtype = str(pick_dtype(given.dtype, torch.device(given.device))).removeprefix("torch.")
    contest, errors = compare(network, chosen(given.peers, dtype), dtype, given.rounds, given.limit)
    operations = flops(network)
    about += f": {operations / 1e12:.3f} TFLOP. {contest.about(given.rounds)} Relative error: L2, of {REFERENCE}."
    body = tabulate(contest, errors, operations, dtype, given.device, given.base)
    write(f"{what}_{dtype}", about, body, torch.device(given.device))
