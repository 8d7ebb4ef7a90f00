"""Peak memory of one inference, by the kernel's high-water mark of a process of its own.

Run as ``python -m sgquant_optuna.packed.peak KIND MODEL GRAPH`` it prints bytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch_geometric.data import Data

from sgquant_optuna.forward_pass import forward
from sgquant_optuna.packed.file import read_store
from sgquant_optuna.packed.model import PackedModel, plain_model

Kind = Literal["packed", "float32"]
_COLUMNS = ("x", "edge_index", "edge_attr", "edge_weight")


def peak_nbytes(path: str | Path, data: Data, kind: Kind) -> int | None:
    """Measure what one inference takes beyond an idle process, from opening its files on.

    Args:
        path:
            Packed model of the paper's models.
        data:
            Its graph.
        kind:
            ``"packed"`` runs the packed model, ``"float32"`` the plain model on dense features.

    Returns:
        Bytes, or ``None`` where the kernel keeps no high-water mark.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    columns = {
        name: data[name].contiguous()
        for name in _COLUMNS
        if isinstance(data.get(name), torch.Tensor) and (name != "x" or kind == "float32")
    }
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph"
        save_file(columns, graph)
        out = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, kind, str(path), str(graph)],
            capture_output=True,
            text=True,
            check=True,
        )
    return int(out.stdout)


def _measure(kind: str, path: str, graph: str) -> int:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
    _warm_up()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    data = Data(**load_file(graph))
    fields, tensors = read_store(path, "packed_model")
    if kind == "packed":
        PackedModel(fields, tensors)(data)
    else:
        model = plain_model(fields, tensors, None).eval()
        del tensors
        with torch.no_grad():
            forward(model, data)
    return _status("VmHWM") - before


def _warm_up() -> None:
    """Let the libraries take their own buffers first."""
    x = torch.rand(64, 64)
    (x @ x).relu()
    x.to_sparse_csr() @ x
    x[torch.arange(64).unique()].sort()


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(_measure(*sys.argv[1:4]))
