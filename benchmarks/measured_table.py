"""A table of every configuration of a real objective, measured with several training seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from synthetic_problems import Problem

TablePath = Path
Measure = Callable[[tuple[int, ...]], tuple[float, Sequence[float]]]
"""Maps the bit widths of a configuration to memory in percent of float32 and drops in points.

There is one drop for each training seed.
"""


def make_table(
    path: Path,
    widths: Sequence[Sequence[int]],
    measure: Measure,
    *,
    names: Sequence[str],
    max_drop: float,
    command: str,
    log: Callable[[str], None] = print,
) -> None:
    """Measure every configuration and store the table.

    Args:
        path:
            File to write; ``samplers.py`` finds ``table_<name>.npz`` in ``benchmarks/data``.
        widths:
            Bit widths that each parameter may take, ascending.
        measure:
            Function that measures one configuration.
        names:
            Name of each parameter.
        max_drop:
            Largest drop that counts as feasible, in percentage points.
        command:
            Command that made the table, kept in the file.
        log:
            Function that gets a line every 100 configurations.
    """
    grid = list(itertools.product(*[range(len(w)) for w in widths]))
    memory, drops = [], []
    for done, index in enumerate(grid, start=1):
        bits = tuple(int(w[i]) for w, i in zip(widths, index, strict=True))
        percent, by_seed = measure(bits)
        memory.append(percent)
        drops.append(list(by_seed))
        if done % 100 == 0:
            log(f"{done} of {len(grid)} configurations")
    description = {
        "widths": [list(w) for w in widths],
        "names": list(names),
        "max_drop": max_drop,
        "command": command,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        index=np.array(grid, dtype=np.int8),
        memory=np.array(memory, dtype=np.float64),
        drop=np.array(drops, dtype=np.float32),
        description=np.array(json.dumps(description)),
    )


def load_table(path: Path) -> tuple[Problem, npt.NDArray[np.float64]]:
    """Read a table.

    Args:
        path:
            File that ``make_table`` wrote: ``index`` ``[n, parameters]`` (position of each
            width, all combinations), ``memory`` ``[n]`` (percent of float32), ``drop``
            ``[n, seeds]`` (percentage points) and ``description`` (JSON with ``widths`` and
            ``max_drop``).

    Returns:
        The problem, whose true drop is the mean over the seeds, and the drops of the single seeds,
        ``[n, seeds]``, in the order of the problem.

    Raises:
        ValueError:
            If the table does not hold every configuration exactly once.
    """
    with np.load(path) as table:
        index, memory = table["index"].astype(np.int64), table["memory"].astype(np.float64)
        drop = table["drop"].astype(np.float64)
        description = json.loads(str(table["description"]))
    widths = tuple(map(tuple, description["widths"]))
    rows = np.ravel_multi_index(tuple(index.T), tuple(len(w) for w in widths))
    if not np.array_equal(np.sort(rows), np.arange(np.prod([len(w) for w in widths]))):
        raise ValueError(f"{path}: expected every configuration exactly once")
    order = np.argsort(rows)
    problem = Problem(
        path.stem,
        widths,
        memory[order],
        drop[order].mean(axis=1),
        max_drop=description["max_drop"],
    )
    return problem, drop[order]
