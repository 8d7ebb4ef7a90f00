"""Records what fixed seeds give, so that a change of structure can be told from one of behaviour.

``python -m tests.recorded_behaviour`` runs a search, an export and the sampler, and writes
``recorded_behaviour.json`` beside this file; ``test_recorded_behaviour.py`` runs them again and
compares. Record anew, and say so in the commit, when numbers are meant to change.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Sums depend on how they are divided among threads.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import optuna
import safetensors.numpy
import scipy.linalg
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch_geometric.nn import GCNConv

from sgquant_optuna.cli import main
from sgquant_optuna.sampler import SGQuantSampler

FILE = Path(__file__).with_name("recorded_behaviour.json")
N_TRIALS = 30
_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_SEARCH = (
    *("search", "--model", "gcn", "--dataset", "digits", "--n-trials", str(N_TRIALS)),
    *("--final-seeds", "2", "--seed", "0", "--quiet"),
)
_MEASURED_TIME = "seconds"


def rounding_of_torch() -> str:
    """Hash some epochs of plain PyG: processors differ in the last bits of their sums."""
    x = torch.from_numpy(load_digits().data).float() / 16
    edges = torch.stack([torch.arange(len(x)), torch.arange(len(x)).roll(7)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GCNConv(x.shape[1], 10)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            labels = torch.from_numpy(load_digits().target)
            nn.functional.cross_entropy(model(x, edges), labels).backward()
            optimizer.step()
    weights = model.lin.weight.detach().numpy().tobytes()
    return _hash(f"{torch.__version__}".encode() + weights)


def rounding_of_scipy() -> str:
    """Hash a solution of linear equations, which a Gaussian process is made of."""
    matrix = np.random.default_rng(0).normal(size=(120, 120))
    solved = scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix @ matrix.T), matrix[:, 0])
    return _hash(f"{np.__version__} {scipy.__version__}".encode() + solved.tobytes())


def search(folder: Path) -> dict[str, Any]:
    """Run ``sgquant search`` and return its trials and its final report."""
    storage = folder / "study.db"
    _run(*_SEARCH, "--storage", str(storage))
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{storage}")
    final = study.user_attrs["sgquant:final"]
    return {
        "trials": [
            {
                "number": trial.number,
                "params": trial.params,
                "values": trial.values,
                "constraint": trial.system_attrs["constraints"],
                "told": {
                    name: value
                    for name, value in sorted(trial.user_attrs.items())
                    if name not in (_MEASURED_TIME, "worker")
                },
            }
            for trial in study.trials
        ],
        "final": {name: final[name] for name in sorted(final)},
    }


def export(folder: Path) -> dict[str, Any]:
    """Run ``sgquant export`` on the study of :func:`search`; return what the file holds.

    Tensors are told by content, not by name, and its header is left out: both are the file's form.
    """
    path = folder / "model.safetensors"
    _run("export", "--storage", str(folder / "study.db"), "--out", str(path), "--quiet")
    tensors = safetensors.numpy.load_file(path)
    contents = [f"{tensor.nbytes} {_hash(tensor.tobytes())}" for tensor in tensors.values()]
    return {"tensors": sorted(contents)}


def sample(problem: str, *, acquisition: str, pareto: bool = False) -> list[list[int]]:
    """Return the configurations that the sampler measures of a synthetic problem."""
    sys.path.insert(0, str(_BENCHMARKS))
    try:
        from synthetic_problems import MAX_DROP, PROBLEMS
    finally:
        sys.path.remove(str(_BENCHMARKS))
    task = PROBLEMS[problem](0)
    space = task.space(ordinal=False)

    def memory(params: Mapping[str, Any]) -> float:
        return float(task.memory[task.row_of(params, ordinal=False)])

    sampler = SGQuantSampler(space, acquisition=acquisition, known_objective=memory, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * (1 + pareto))
    for _ in range(N_TRIALS):
        trial = study.ask(space)
        drop = float(task.drop[task.row_of(trial.params, ordinal=False)])
        if not pareto:
            trial.set_constraint("drop", drop - MAX_DROP)
        study.tell(trial, [memory(trial.params), drop][: 1 + pareto])
    return [list(trial.params.values()) for trial in study.trials]


SAMPLES: dict[str, dict[str, Any]] = {
    "smooth": {"problem": "smooth", "acquisition": "default"},
    "cliffs": {"problem": "cliffs", "acquisition": "default"},
    "layers": {"problem": "layers", "acquisition": "default"},
    "smooth, two objectives": {"problem": "smooth", "acquisition": "default", "pareto": True},
    "smooth, paper": {"problem": "smooth", "acquisition": "paper"},
}


def _run(*arguments: str) -> None:
    try:
        main(list(arguments))
    except SystemExit as end:
        assert not end.code, f"sgquant {' '.join(arguments)} ended with {end.code}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def record() -> dict[str, Any]:
    """Return all that is compared, and how this machine rounds."""
    with tempfile.TemporaryDirectory() as folder:
        searched = search(Path(folder))
        exported = export(Path(folder))
    return {
        "rounding_of_torch": rounding_of_torch(),
        "rounding_of_scipy": rounding_of_scipy(),
        "search": searched,
        "export": exported,
        "samples": {name: sample(**options) for name, options in SAMPLES.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(record(), indent=1) + "\n")
