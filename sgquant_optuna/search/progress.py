"""The progress bar of a search: trials, the best of them, time left."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sgquant_optuna.study.early_stop import EarlyStop
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import rows_of
from sgquant_optuna.study.selection import best_feasible
from sgquant_optuna.study.trial_result import TrialScore


class SearchProgress:
    """A bar in the place of Optuna's lines: trials, best saving or drop, time left.

    Args:
        study:
            Study of :func:`create_study`; trials that it holds already count.
        total:
            Trials after which the search ends.
        console:
            Console to draw on; the standard error by default.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective.

    Example:
        ::

            with SearchProgress(study, total=60) as progress:
                study.optimize(objective, n_trials=60, callbacks=[progress])
    """

    def __init__(self, study: optuna.Study, *, total: int, console: Console | None = None) -> None:
        self._limit = StudyRecord.of(study).limit
        self._verbosity = optuna.logging.get_verbosity()
        self._progress = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("best {task.fields[best]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._study = study
        self._task = self._progress.add_task("trials", total=total, best="none yet")

    def __enter__(self) -> SearchProgress:
        """Start drawing; Optuna's lines would tear the bar apart."""
        self._verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(self._verbosity, optuna.logging.WARNING))
        self.update()
        self._progress.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Draw a last time and stop."""
        try:
            self.update()
            # A study that ended by an error may be deleted.
            ended = EarlyStop.load(self._study) if kind is None else None
            if ended is not None:
                self.print(f"the search ended early: {ended.reason}")
        finally:
            self._progress.stop()
            optuna.logging.set_verbosity(self._verbosity)

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.update()

    def update(self) -> None:
        """Read from the study what all its workers have finished."""
        # Optuna has read finished trials before; rows of a database would be read anew each time.
        try:
            trials = self._study.get_trials(deepcopy=False)
        except KeyError:  # deleted; the workers tell it
            return
        results = [row.result for row in rows_of(self._study, trials, TrialScore)]
        best = best_feasible(results, self._limit)
        self._progress.update(
            self._task,
            completed=sum(one is not None for one in results),
            best="none yet" if best is None else self._limit.describe_best(best),
        )

    def print(self, line: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
