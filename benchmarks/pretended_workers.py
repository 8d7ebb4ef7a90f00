"""``sgquant worker`` as it is, with trials that only pretend to train.

Everything but the objective is the product's: the command, its signals, the storage, the sampler.
The variable ``PRETENCE`` (JSON) says how to pretend; processes that a worker starts inherit it.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from pretended_trials import BEATS, LAYERS, noting_in, objective, sampler

import sgquant_optuna.storage
from sgquant_optuna import cli
from sgquant_optuna.search.preparation import PreparedSearch
from sgquant_optuna.search.workers import engines
from sgquant_optuna.storage import limits
from sgquant_optuna.study.plan import SearchPlan

VARIABLE = "PRETENCE"
PROGRAM = "import sys, pretended_workers; pretended_workers.work({}, sys.argv[1:])"
"""What a process of its own runs, with this folder in ``PYTHONPATH``."""


@dataclass(frozen=True)
class Pretence:
    """How a worker pretends.

    Args:
        folder:
            Folder of its results, of its log, and of the wish that it pauses itself.
        seconds:
            Seconds of a trial.
        layers:
            Number of parameters of a trial.
        sampler:
            Options of the sampler.
        limits:
            Values for names of ``storage/limits.py``; names that it does not have are left out.
    """

    folder: str
    seconds: float = 0.2
    layers: int = LAYERS
    sampler: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that pretends like this."""
        return {VARIABLE: json.dumps(asdict(self))}


def pause_wish(folder: str | Path, pid: int) -> Path:
    """Return the file that makes a worker stop itself in a transaction.

    It holds the beginning of the statement after which that happens.
    """
    return Path(folder) / f"pause-{pid}"


def pretend(pretence: Pretence) -> None:
    """Let the workers of this process pretend, and those that it starts."""
    sgquant_optuna.storage.open_storage = functools.partial(
        sgquant_optuna.storage.open_storage, **BEATS
    )
    for name, value in pretence.limits.items():
        if hasattr(limits, name):
            setattr(limits, name, value)

    def join(study: optuna.Study, storage: Any, *rest: Any, **options: Any) -> PreparedSearch:
        chooser = sampler(os.getpid(), layers=pretence.layers, **pretence.sampler)
        joined = optuna.load_study(study_name=study.study_name, storage=storage, sampler=chooser)
        measure: Any = functools.partial(
            objective, layers=pretence.layers, seconds=pretence.seconds
        )
        data: Any = None
        return PreparedSearch(SearchPlan.load(study), joined, measure, data)

    folder = Path(pretence.folder)
    engines.join_search = join
    engines.run_worker = functools.partial(
        engines.run_worker, callbacks=[noting_in(folder / f"results-{os.getpid()}")]
    )
    sa.event.listen(sa.Engine, "after_cursor_execute", _pausing(folder))
    sys.executable = str(_python_that_pretends(folder))
    faulthandler.register(signal.SIGUSR1)  # shows where a worker hangs


def _pausing(folder: Path) -> Any:
    wish = pause_wish(folder, os.getpid())

    def pause(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if wish.exists() and statement.lstrip().startswith(wish.read_text()):
            wish.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

    return pause


def _python_that_pretends(folder: Path) -> Path:
    """Make a program that takes ``-m sgquant_optuna`` for :data:`PROGRAM`."""
    program = folder / f"python-{os.getpid()}"
    program.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -c "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    return program


def work(environment: Mapping[str, str], arguments: list[str]) -> None:
    """Be a worker: the target of a process that has this module already."""
    os.environ.update(environment)
    time.tzset()
    pretence = Pretence(**json.loads(os.environ[VARIABLE]))
    with (Path(pretence.folder) / f"log-{os.getpid()}").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    print(sgquant_optuna.__file__, flush=True)
    pretend(pretence)
    sys.argv[1:] = arguments
    getattr(cli, "run", cli.main)()  # an older version has no other
