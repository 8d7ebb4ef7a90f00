"""Packed features against float32 MKL: stored bytes, packing speed, time ratios, peak memory.

    python benchmarks/packed.py [--quick] [--linear]

Random features of Reddit's size (232,965 x 602, 535 MiB of float32) are packed at several widths.
``linear`` multiplies them to 32 columns; ``aggregate`` sums the neighbours of a quarter of the
nodes, with Reddit's mean degree of 492. A ratio is the time of float32 MKL divided by ours, of
interleaved runs in one process: 2 means twice as fast as MKL. Peaks are the high-water mark that
Linux keeps of a new process, in MiB beyond inputs and output, after every page was read once.
``difference`` is the largest difference between compiled and plain results, divided by the largest
value. ``--linear`` measures ``linear`` alone, both ways.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sgquant_optuna.packed.kernels import has_kernels
from sgquant_optuna.packed.operations import aggregate, linear
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.quantization.affine import affine_parameters
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, row_bytes

MIXES = {
    "8": [8],
    "4": [4],
    "2": [2],
    "1": [1],
    "8/4/2/1": [8, 4, 2, 1],
}
# Nodes of high degree can take fewer bits, so most edges reach the narrowest bucket.
SHARES = (0.1, 0.2, 0.3, 0.4)
OUT_COLUMNS = 32
NARROW = (16, 32, 64, 128, 256)


def graph(num_rows: int, num_nodes: int, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    crow = torch.arange(num_rows + 1) * degree
    col = torch.randint(num_nodes, (num_rows * degree,), generator=generator)
    return crow, col, torch.rand(len(col), generator=generator)


def packed(x: Tensor, bit_widths: list[int], *, fast: bool | None = None) -> PackedFeatures:
    bucket = torch.zeros(len(x), dtype=torch.long)
    if len(bit_widths) > 1:
        generator = torch.Generator().manual_seed(1)
        bucket = torch.multinomial(
            torch.tensor(SHARES), len(x), replacement=True, generator=generator
        )
    ends = torch.full((len(bit_widths), 1), 4.0)
    scale, zero_point = affine_parameters(-ends, ends, torch.tensor(bit_widths)[:, None])
    return PackedFeatures.from_dense(x, bucket, bit_widths, scale, zero_point, fast=fast)


def formula(features: PackedFeatures) -> int:
    counts = torch.bincount(features.bucket.long(), minlength=len(features.bit_widths)).tolist()
    num_nodes, num_columns = features.shape
    rows = sum(
        count * row_bytes(num_columns, width)
        for count, width in zip(counts, features.bit_widths, strict=True)
    )
    return rows + 8 * len(counts) + integers_nbytes(num_nodes, bits_for(len(counts) - 1))


def ratio(reference: Callable[[], object], candidate: Callable[[], object], repeats: int) -> str:
    ratios = []
    reference(), candidate()
    for _ in range(repeats):
        start = time.perf_counter()
        reference()
        middle = time.perf_counter()
        candidate()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def speed(x: Tensor, bit_widths: list[int], repeats: int, *, fast: bool) -> str:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        packed(x, bit_widths, fast=fast)
        seconds.append(time.perf_counter() - start)
    return f"{x.nbytes / statistics.median(seconds[1:]) / 1e9:.2f}"


def difference(features: PackedFeatures, weight: Tensor, parts: tuple[Tensor, ...]) -> str:
    """Return the largest relative difference between the compiled and the plain way."""
    few = parts[0][:101], parts[1][: int(parts[0][100])], parts[2][: int(parts[0][100])]
    worst = 0.0
    for compiled, plain in (
        [linear(features, weight, fast=fast) for fast in (has_kernels(), False)],
        [aggregate(*few, features, fast=fast) for fast in (has_kernels(), False)],
    ):
        worst = max(worst, float((compiled - plain).abs().max() / plain.abs().max()))
    return f"{worst:.0e}"


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measure_peak(path: str, operation: str, rows: int, degree: int) -> None:
    """Print the extra bytes of one operation, in MiB; run in a process of its own."""
    features = PackedFeatures.open(path)
    weight = torch.randn(OUT_COLUMNS, features.num_columns)
    parts = graph(rows, features.shape[0], degree)
    warm = packed(torch.randn(64, features.num_columns), [8, 4, 2, 1])
    linear(warm, weight), aggregate(*graph(4, 64, 4), warm)
    features.data.sum()  # every mapped page is resident before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    out = linear(features, weight) if operation == "linear" else aggregate(*parts, features)
    print(f"{(resident('VmHWM') - before - out.nbytes) / 2**20:.0f}")


def peak(features: PackedFeatures, operation: str, rows: int, degree: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        features.save(Path(folder) / "x")
        return subprocess.run(
            [sys.executable, __file__, "--peak", f"{folder}/x", operation, str(rows), str(degree)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()


def wide_table(num_nodes: int, rows: int, degree: int, repeats: int) -> Table:
    x, weight = torch.randn(num_nodes, 602), torch.randn(OUT_COLUMNS, 602)
    crow, col, value = graph(rows, num_nodes, degree)
    matrix = torch.sparse_csr_tensor(crow, col, value, (rows, num_nodes), check_invariants=False)
    table = Table(
        title=f"{num_nodes:,} x 602, {x.nbytes / 2**20:.0f} MiB of float32, {len(col):,} edges, "
        f"{torch.get_num_threads()} threads"
    )
    for column in (
        "bits", "stored MiB", "formula", "pack GB/s", "without numba", "linear", "aggregate",
        "peak linear", "peak aggregate", "difference",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, widths in MIXES.items():
        features = packed(x, widths)
        table.add_row(
            name,
            f"{features.stored_nbytes / 2**20:.1f}",
            "equal" if features.stored_nbytes == formula(features) else "DIFFERS",
            speed(x, widths, 1, fast=has_kernels()),
            speed(x, widths, 1, fast=False),
            # Short, so repeated more: a moment of other work would tell.
            ratio(lambda: x @ weight.t(), lambda f=features: linear(f, weight), 5 * repeats),
            ratio(lambda: matrix @ x, lambda f=features: aggregate(crow, col, value, f), repeats),
            peak(features, "linear", rows, degree),
            peak(features, "aggregate", rows, degree),
            difference(features, weight, (crow, col, value)),
        )
    return table


def linear_table(num_nodes: int, repeats: int) -> Table:
    x, weight = torch.randn(num_nodes, 602), torch.randn(OUT_COLUMNS, 602)
    table = Table(title=f"linear, {num_nodes:,} x 602 to 32, {torch.get_num_threads()} threads")
    for column in ("bits", "compiled", "plain torch"):
        table.add_column(column, justify="right")
    for name, widths in MIXES.items():
        features = packed(x, widths)
        ways = [
            ratio(
                lambda: x @ weight.t(), lambda f=features, w=w: linear(f, weight, fast=w), repeats
            )
            for w in (has_kernels(), False)
        ]
        table.add_row(name, *ways)
    return table


def narrow_table(num_nodes: int, degree: int, repeats: int) -> Table:
    table = Table(title="aggregate at 4 bits: time of float32 MKL divided by ours")
    for column in ("columns", "kernel", "unpack and multiply"):
        table.add_column(column, justify="right")
    crow, col, value = graph(num_nodes, num_nodes, degree)
    matrix = torch.sparse_csr_tensor(
        crow, col, value, (num_nodes, num_nodes), check_invariants=False
    )
    for num_columns in NARROW:
        x = torch.randn(num_nodes, num_columns)
        features = packed(x, [4])
        ways = [
            ratio(
                lambda x=x: matrix @ x,
                lambda x=features, fast=fast: aggregate(crow, col, value, x, fast=fast),
                repeats,
            )
            for fast in (True, False)
        ]
        table.add_row(str(num_columns), *ways)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--linear", action="store_true", help="only that")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
    if options.peak:
        path, operation, rows, degree = options.peak
        measure_peak(path, operation, int(rows), int(degree))
        return
    num_nodes, rows, repeats = (23_000, 1_000, 2) if options.quick else (232_965, 58_241, 3)
    console = Console(width=170)
    if options.linear:
        console.print(linear_table(num_nodes, 5 * repeats))
        return
    console.print(wide_table(num_nodes, rows, 492, repeats))
    if has_kernels():
        console.print(narrow_table(5_000 if options.quick else 20_000, 50, repeats))


if __name__ == "__main__":
    main()
