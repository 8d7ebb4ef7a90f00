"""``sgquant pack``: speed on one core, peak memory at any size, and rows read from the result.

    python benchmarks/pack.py [--quick] [--folder FOLDER]

Speed is GB of float32 by second of processor time, in a process on one core, after a first small
file has compiled the kernels; values are random, and the file is in the cache of the system.
``of the clock`` is the same by the clock. Peaks are the high-water mark that Linux keeps of a
process, in MiB, with Python, torch and numba; their files are holes, which take no room on the
disk. ``rows`` is the time of 20,000 random rows from a mapped float32 file divided by ours.
``pages`` are those of 4 KiB that 16 batches of 20,000 neighbours, each drawn by its degree, touch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sgquant_optuna.packed.feature_packing import pack_features
from sgquant_optuna.packed.mapped_features import MappedFeatures

COLUMNS = 128
BATCH = 20_000
TYPES = {
    "float32": ("<f4", "C"),
    "float32, Fortran order": ("<f4", "F"),
    "float32, big-endian": (">f4", "C"),
    "float64": ("<f8", "C"),
    "float16": ("<f2", "C"),
}


def write_features(path: Path, rows: int, kind: str = "float32") -> None:
    dtype, order = TYPES[kind]
    x = np.random.default_rng(0).standard_normal((rows, COLUMNS), np.float32)
    np.save(path, np.asarray(x, dtype=dtype, order=order))  # type: ignore[call-overload]


def write_hole(path: Path, rows: int) -> None:
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, COLUMNS), np.float32))
    header["shape"] = (rows, COLUMNS)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * rows * COLUMNS)


def write_edges(path: Path, rows: int, per_node: int) -> None:
    """Write edges that end in few nodes mostly, whose numbers say nothing of their degree."""
    random = np.random.default_rng(1)
    order = random.permutation(rows)
    array = np.lib.format.open_memmap(path, "w+", np.int64, (2, rows * per_node))
    step = 1 << 22
    for start in range(0, array.shape[1], step):
        part = array[:, start : start + step]
        part[0] = random.integers(rows, size=part.shape[1])
        part[1] = order[np.int64(rows * random.random(part.shape[1]) ** 3)]
    array.flush()


def measure(source: str, out: str, bits: str, edges: str) -> None:
    """Pack a file and print seconds and peak; run in a process of its own, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pack_features(torch.randn(10, 8), Path(folder) / "x", 4)
    clock, processor = time.perf_counter(), time.process_time()
    widths = [int(width) for width in bits.split(",")]
    packed = pack_features(source, out, widths, edges=edges or None, overwrite=True)
    found = {
        "clock": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "peak": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024,
        "bytes": packed.stored_nbytes,
    }
    print(json.dumps(found))


def measured(source: Path, out: Path, bits: str, edges: Path | None = None) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", str(source), str(out), bits, str(edges or "")]
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def speed_table(folder: Path, rows: int, repeats: int) -> Table:
    table = Table(title=f"{rows:,} x {COLUMNS}, {4 * rows * COLUMNS / 1e9:.2f} GB of float32")
    for column in ("values", "bits", "GB/s", "of the clock", "packed MB", "peak MiB"):
        table.add_column(column, justify="right")
    out, edges = folder / "x.sgq", folder / "edges.npy"
    write_edges(edges, rows, 10)
    cases = [("float32", bits, False) for bits in ("1", "2", "4", "8", "16", "32")]
    cases += [("float32", "4", True), ("float32", "8,4,2,1", True)]
    cases += [(kind, "4", False) for kind in TYPES if kind != "float32"]
    written = None
    for kind, bits, by_degree in cases:
        if kind != written:
            write_features(folder / "x.npy", rows, kind)
            written = kind
        nbytes = 4 * rows * COLUMNS
        runs = [
            measured(folder / "x.npy", out, bits, edges if by_degree else None)
            for _ in range(repeats)
        ]
        table.add_row(
            kind,
            f"{bits} by degree" if by_degree else bits,
            f"{nbytes / statistics.median(run['processor'] for run in runs) / 1e9:.2f}",
            f"{nbytes / statistics.median(run['clock'] for run in runs) / 1e9:.2f}",
            f"{runs[0]['bytes'] / 1e6:.1f}",
            f"{max(run['peak'] for run in runs):.0f}",
        )
    return table


def peak_table(folder: Path, sizes: list[float]) -> Table:
    table = Table(title="peak memory at 4 bits")
    for column in ("GB of float32", "rows", "order", "peak MiB", "seconds"):
        table.add_column(column, justify="right")
    source, out, edges = (folder / name for name in ("hole.npy", "hole.sgq", "edges.npy"))
    for gigabytes in sizes:
        rows = round(gigabytes * 1e9 / (4 * COLUMNS))
        write_hole(source, rows)
        of_nodes = measured(source, out, "4")
        found = {"of the nodes": of_nodes}
        if gigabytes <= 16:  # else the edges would take more of the disk than all the rest
            write_edges(edges, rows, 2)
            found["by degree"] = measured(source, out, "4", edges)
        for order, run in found.items():
            table.add_row(
                f"{gigabytes:g}", f"{rows:,}", order, f"{run['peak']:.0f}", f"{run['clock']:.0f}"
            )
    for path in (source, out, edges):
        path.unlink(missing_ok=True)
    return table


def pages(features: MappedFeatures, batches: list[torch.Tensor]) -> int:
    size = features.layout.row_nbytes[0]
    places = np.concatenate([features._places(batch.numpy()) for batch in batches]).astype(int)
    ends = np.concatenate([places * size, (places + 1) * size - 1])
    return len(np.unique(ends // 4096))


def rows_table(folder: Path, rows: int, repeats: int) -> Table:
    table = Table(title=f"{BATCH:,} random rows of {rows:,} x {COLUMNS}")
    for column in ("bits", "rows", "pages in node order", "by degree"):
        table.add_column(column, justify="right")
    source, out, edges = (folder / name for name in ("x.npy", "x.sgq", "edges.npy"))
    write_features(source, rows)
    write_edges(edges, rows, 10)
    full = np.load(source, mmap_mode="r")
    targets = torch.from_numpy(np.load(edges, mmap_mode="r")[1].copy())
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(targets), (BATCH,), generator=generator) for _ in range(16)]
    batches = [targets[draw] for draw in draws]
    for bits in (1, 2, 4, 8):
        features = pack_features(source, out, bits, overwrite=True)
        ratios = []
        for batch in batches[:1] + batches * repeats:
            start = time.process_time()
            torch.from_numpy(full[batch.numpy()])
            middle = time.process_time()
            features.rows(batch)
            ratios.append((middle - start) / (time.process_time() - middle))
        in_order = pages(features, batches)
        by_degree = pack_features(source, out, bits, edges=edges, overwrite=True)
        table.add_row(
            str(bits),
            f"{statistics.median(ratios[1:]):.2f}",
            f"{in_order:,}",
            f"{pages(by_degree, batches):,}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small files")
    parser.add_argument("--folder", help="where the files are made and removed")
    parser.add_argument("--only", choices=("speed", "peak", "rows"), help="one table")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    rows, repeats = (200_000, 1) if options.quick else (2_000_000, 3)
    sizes = [0.25, 1.0] if options.quick else [1.0, 12.5, 50.0]
    console = Console(width=120)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.only in (None, "speed"):
            console.print(speed_table(Path(folder), rows, repeats))
        if options.only in (None, "peak"):
            console.print(peak_table(Path(folder), sizes))
        if options.only in (None, "rows"):
            console.print(rows_table(Path(folder), rows, repeats))


if __name__ == "__main__":
    main()
