"""Peak memory of one inference: the high-water mark that Linux keeps of a new process.

``python -m sgquant_optuna.packed.peak_memory MODEL FOLDER`` prints the bytes of each kind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch_geometric.data import Data

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import AGNN, GAT, GCN
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.model_packing import contents_of
from sgquant_optuna.packed.packed_model import PackedModel
from sgquant_optuna.quantization.sites import BitWidths

Kind = Literal["packed", "float32"]
_EDGES = ("edge_index", "edge_attr", "edge_weight")


def peak_nbytes(path: str | Path, data: Data) -> dict[Kind, int] | None:
    """Measure the memory of one inference beyond an idle process, from the opening of its files.

    Args:
        path:
            File of one of the paper's models.
        data:
            Graph of the model, with ``x``.

    Returns:
        Bytes of the packed model and of the plain float32 model on dense features, or ``None``
        where the system keeps no high-water mark.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    edges = {name: data[name].contiguous() for name in _EDGES if data.get(name) is not None}
    with tempfile.TemporaryDirectory() as folder:
        save_file(edges, Path(folder) / "edges")
        save_file({"x": data.x.contiguous()}, Path(folder) / "x")
        out = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, str(path), folder],
            capture_output=True,
            text=True,
            check=True,
        )
    packed, float32 = out.stdout.split()
    return {"packed": int(packed), "float32": int(float32)}


def _measure(kind: Kind, path: str, folder: Path) -> int:
    _warm_up()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    data = Data(**load_file(folder / "edges"))
    contents = ModelContents.read(path)
    if kind == "packed":
        model = PackedModel(contents.fields, contents.tensors)
        if not model.holds_features:
            data.x = load_file(folder / "x")["x"]
            model = model.on(data)
            del data.x
        model(data)
    else:
        data.x = load_file(folder / "x")["x"]
        plain = contents.plain_model().eval()
        del contents
        with torch.no_grad():
            forward(plain, data)
    return _status("VmHWM") - before


def _warm_up() -> None:
    """Run a tiny model both ways, so that code and buffers of the libraries are loaded before."""
    data = Data(x=torch.rand(8, 4).round(), edge_index=torch.arange(8).view(2, 4), num_nodes=8)
    for build in (GCN, AGNN, GAT):
        model = attach(build(4, 2))
        layout = calibrate(model, data, candidates=(1, 4), forward=forward)
        set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))
        forward(model.eval(), data)
        contents = contents_of(model, data, layout)
        PackedModel(contents.fields, contents.tensors)(data)


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def _main(path: str, folder: str) -> None:
    for kind in get_args(Kind):
        child = os.fork()  # the libraries are imported once; no thread runs yet
        if not child:
            print(_measure(kind, path, Path(folder)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:3])
