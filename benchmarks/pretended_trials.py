"""Trials that pretend to train, notes of their results, and a comparison of both.

Each worker writes its results to a synced file of its own besides the study, so that a result that
the study lost is detected.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.storage import write_together

LAYERS = 5
BEATS: dict[str, Any] = {"heartbeat_interval": 1, "grace_period": 6, "retry_seconds": 60.0}
_WIDTHS = (1, 2, 4, 8)
_PAGE = os.sysconf("SC_PAGE_SIZE")


def sampler(seed: int, *, layers: int = LAYERS, **options: Any) -> SGQuantSampler:
    """Return our sampler, which chooses within some milliseconds."""
    widths = optuna.distributions.CategoricalDistribution(_WIDTHS)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: widths for name in _names(layers)
    }
    cheap: dict[str, Any] = {"acquisition": "paper", "n_measure": 20, "n_sample": 200}
    return SGQuantSampler(space, seed=seed, **{**cheap, **options})


def objective(trial: Trial, *, layers: int = LAYERS, seconds: float = 0.05) -> float:
    """Return the bytes of a made-up model after some time, and set its constraint."""
    with write_together():
        widths = [trial.suggest_categorical(name, _WIDTHS) for name in _names(layers)]
    time.sleep(seconds)
    drop = sum(2.0**-width for width in widths)
    trial.set_user_attr("accuracy_drop", drop)
    if not trial.constraints:  # a trial that runs again has it already
        trial.set_constraint("drop", drop - 1.0)
    return float(sum((place + 1) * width for place, width in enumerate(widths)))


def _names(layers: int) -> list[str]:
    return [f"layer{number}" for number in range(layers)]


@dataclass(frozen=True)
class Note:
    """One result.

    Args:
        file:
            Name of the worker's file.
        number:
            Number of the trial.
        value:
            Value of the trial.
        time:
            Monotonic time of the machine, in seconds, at which its worker went on.
        memory:
            Resident memory of the worker then, in bytes.
    """

    file: str
    number: int
    value: float
    time: float
    memory: int


def noting_in(path: Path) -> Callable[[optuna.Study, FrozenTrial], None]:
    """Return a callback that writes the results of a worker to a file."""

    def note(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE:
            return
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
        line = [trial.number, trial.value, time.monotonic(), memory]
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    return note


def notes(folder: Path) -> list[Note]:
    """Return all results in the files of a folder, except lines that a kill cut off."""
    return [
        Note(path.name, *json.loads(line))
        for path in folder.glob("results-*")
        for line in path.read_text().splitlines()
        if line.endswith("]")
    ]


def compare(study: optuna.Study, folder: Path, n_trials: int) -> dict[str, int]:
    """Compare a study with its number of trials and with the files of its workers."""
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    kept = {(trial.number, trial.value) for trial in complete}
    return {
        "complete": len(complete),
        "missing": max(n_trials - len(complete), 0),
        "surplus": max(len(complete) - n_trials, 0),
        "unfinished": sum(not trial.state.is_finished() for trial in trials),
        "lost": sum((note.number, note.value) not in kept for note in notes(folder)),
        "duplicates": len(complete) - len({tuple(trial.params.values()) for trial in complete}),
    }
