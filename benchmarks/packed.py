"""Packed features against float32 MKL: stored bytes, time ratios and peak extra memory.

Times are ratios of interleaved runs in one process; peaks are the kernel's high-water mark of a
process of its own.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from sgquant_optuna.packed.features import PackedFeatures
from sgquant_optuna.packed.operations import aggregate, linear
from sgquant_optuna.quantization.affine import affine_parameters

MIXES = {"8": [8], "4": [4], "1": [1], "8/4/2/1": [8, 4, 2, 1]}


def resident_mib(field):
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def graph(num_rows, num_nodes, degree):
    generator = torch.Generator().manual_seed(0)
    crow = torch.arange(num_rows + 1) * degree
    col = torch.randint(num_nodes, (num_rows * degree,), generator=generator)
    return crow, col, torch.rand(len(col), generator=generator)


def packed(x, bit_widths):
    # Edges reach all buckets alike; in a real graph most reach the narrowest one.
    bucket = torch.arange(len(x)) % len(bit_widths)
    ends = torch.full((len(bit_widths), 1), 4.0)
    scale, zero_point = affine_parameters(-ends, ends, torch.tensor(bit_widths)[:, None])
    return PackedFeatures.from_dense(x, bucket, bit_widths, scale, zero_point)


def ratio(reference, candidate, repeats):
    ratios = []
    candidate()
    for _ in range(repeats):
        start = time.perf_counter()
        reference()
        middle = time.perf_counter()
        candidate()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def peak(args, mix, operation):
    x = packed(torch.randn(args.nodes, args.columns), MIXES[mix])
    weight, parts = torch.randn(32, args.columns), graph(args.rows, args.nodes, args.degree)
    if operation == "linear":
        linear(packed(torch.randn(64, args.columns), MIXES[mix]), weight)
    else:
        aggregate(*graph(4, args.nodes, 4), x)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    out = linear(x, weight) if operation == "linear" else aggregate(*parts, x)
    print(f"{resident_mib('VmHWM') - before - out.nbytes / 2**20:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("MIX", "OPERATION"))
    args = parser.parse_args()
    args.nodes, args.columns, args.repeats = (20_000 if args.quick else 232_965), 602, 3
    args.rows, args.degree = (500 if args.quick else 4_000), 492
    if args.peak:
        peak(args, *args.peak)
        return
    x, weight = torch.randn(args.nodes, args.columns), torch.randn(32, args.columns)
    crow, col, value = graph(args.rows, args.nodes, args.degree)
    matrix = torch.sparse_csr_tensor(
        crow, col, value, (args.rows, args.nodes), check_invariants=False
    )
    print("mix | stored MiB | pack GB/s | linear x | aggregate x | peak MiB linear, aggregate")
    for mix, bit_widths in MIXES.items():
        start = time.perf_counter()
        features = packed(x, bit_widths)
        speed = x.nbytes / (time.perf_counter() - start) / 1e9
        times = (
            ratio(lambda: x @ weight.t(), lambda f=features: linear(f, weight), args.repeats),
            ratio(
                lambda: matrix @ x,
                lambda f=features: aggregate(crow, col, value, f),
                args.repeats,
            ),
        )
        peaks = [
            subprocess.run(
                [sys.executable, __file__, "--peak", mix, operation, *["--quick"] * args.quick],
                capture_output=True, text=True, check=True,
            ).stdout.strip()
            for operation in ("linear", "aggregate")
        ]  # fmt: skip
        size = f"{features.stored_nbytes / 2**20:.1f}"
        print(" | ".join([mix, size, f"{speed:.2f}", *times, ", ".join(peaks)]), flush=True)


if __name__ == "__main__":
    main()
