"""The progress bar of a search: trials, best saving, time left."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sgquant_optuna.selection import measured_trials


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
            Where to draw.
    """

    def __init__(
        self, study: optuna.Study, max_drop: float, *, total: int, console: Console
    ) -> None:
        self._max_drop = max_drop
        self._best = 0.0
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
        trials = measured_trials(study)
        for trial in trials:
            self._note(trial)
        self._task = self._progress.add_task(
            "trials", total=total, completed=len(trials), best=self._shown()
        )

    def __enter__(self) -> SearchProgress:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing."""
        self._progress.stop()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        if trial.state == TrialState.COMPLETE:
            self._note(trial)
            self._progress.update(self._task, advance=1, best=self._shown())

    def _note(self, trial: FrozenTrial) -> None:
        if trial.user_attrs["accuracy_drop"] <= self._max_drop:
            self._best = max(self._best, float(trial.user_attrs["saving"]))

    def _shown(self) -> str:
        return f"{self._best:.1f}x" if self._best else "none yet"
