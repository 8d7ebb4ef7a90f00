"""The progress bar of a search: trials, best saving, time left."""

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

from sgquant_optuna.study.rows import row_of
from sgquant_optuna.study.trial_result import TrialScore


class SearchProgress:
    """An Optuna callback that draws the progress of a study.

    Args:
        study:
            The study; trials that it holds already count.
        max_drop:
            Largest feasible drop, in percentage points.
        total:
            Trials after which the search ends.
        console:
            Console to draw on.
    """

    def __init__(
        self, study: optuna.Study, max_drop: float, *, total: int, console: Console
    ) -> None:
        self._max_drop = max_drop
        self._progress = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("best saving {task.fields[best]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._study = study
        self._task = self._progress.add_task("trials", total=total, best="none yet")

    def __enter__(self) -> SearchProgress:
        """Start drawing."""
        self.update()
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Draw a last time and stop."""
        self.update()
        self._progress.stop()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.update()

    def update(self) -> None:
        """Read from the study what all its workers have finished."""
        # Optuna has read finished trials before; rows of a database would be read anew each time.
        trials = self._study.get_trials(deepcopy=False)
        rows = [row_of(trial, TrialScore) for trial in trials]
        results = [row.result for row in rows if row.result is not None]
        savings = [one.saving for one in results if one.is_feasible(self._max_drop)]
        best = f"{max(savings):.1f}x" if savings else "none yet"
        self._progress.update(self._task, completed=len(results), best=best)

    def print(self, line: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
