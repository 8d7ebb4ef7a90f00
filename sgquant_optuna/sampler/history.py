"""The trials of a study, as this sampler uses them; each finished trial is parsed once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.sampler.claims import Claim, Opening, constraints_of, enqueued_of
from sgquant_optuna.sampler.space import FiniteSpace, Index, Indices

_MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Record:
    """One trial.

    Args:
        number:
            Number of the trial in the study.
        state:
            State of the trial when it was read.
        claim:
            Claim of the trial on this grid, if it has one.
        index:
            Configuration that it measures; ``None`` if it is unknown or not on the grid.
        is_fixed:
            Whether it was enqueued with given parameters.
        values:
            Objective values; empty unless the trial is complete and they are finite.
        constraints:
            Constraint values by name; 0 and below are feasible.
        attrs:
            User attributes.
    """

    number: int
    state: TrialState
    claim: Claim | None
    index: Index | None
    is_fixed: bool
    values: tuple[float, ...]
    constraints: dict[str, float]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def occupied(self) -> tuple[Index, ...]:
        """Configurations that no other trial should measure."""
        claimed = self.claim.index if self.claim is not None else None
        return tuple({i for i in (self.index, claimed) if i is not None})


class History:
    """All trials of one study on one grid.

    Finished trials never change, so each is parsed once. Unfinished trials are parsed every time.

    Args:
        space:
            Grid of the configurations.
    """

    def __init__(self, space: FiniteSpace) -> None:
        """Start without trials."""
        self.space = space
        self._forget()

    def _forget(self) -> None:
        self._finished: dict[int, Record] = {}
        self._first_finished: tuple[int, Any] | None = None
        self._occupied: Counter[Index] = Counter()
        self._measured_by_round: Counter[int] = Counter()
        self._openings: dict[int, Opening] = {}
        self._top_round = -1
        self._latest_claimed = -1
        self._num_usable = 0
        self.unfinished: list[Record] = []
        self.num_trials = 0

    def read(self, study: Study) -> None:
        """Bring the history up to date with the storage.

        The trials are read from the storage, not from the study: a study that a pruner has
        filtered hides trials, and its cache may be older than the claim of another worker.
        """
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        if len(trials) < self.num_trials or not self._is_same_study(trials):
            self._forget()
        self.num_trials = len(trials)
        self.unfinished = []
        for trial in trials:
            if trial.number in self._finished:
                continue
            record = self._parse(trial)
            if trial.state.is_finished():
                self._add(trial, record)
            else:
                self.unfinished.append(record)

    def occupied_by_others(self, number: int) -> set[Index]:
        """Configurations that trials other than ``number`` have measured or will measure."""
        occupied = set(self._occupied)
        for record in self.unfinished:
            if record.number != number:
                occupied.update(record.occupied)
        return occupied

    def is_held_by_another(self, index: Index, number: int) -> bool:
        """Return whether a trial other than ``number`` that did not fail has a configuration."""
        records = [*self._finished.values(), *self.unfinished]
        return any(
            index in r.occupied and r.number != number and r.state != TrialState.FAIL
            for r in records
        )

    @property
    def top_round(self) -> int:
        """Highest round of any claim; -1 before the first."""
        return max([self._top_round, *(r.claim.round for r in self.unfinished if r.claim)])

    @property
    def latest_claimed(self) -> int:
        """Number of the newest trial with a claim; -1 before the first."""
        return max([self._latest_claimed, *(r.number for r in self.unfinished if r.claim)])

    @property
    def num_usable(self) -> int:
        """Number of complete trials on this grid with finite values."""
        return self._num_usable

    def measured(self, round_: int) -> int:
        """Count the claims of a round whose trials are complete or pruned."""
        return self._measured_by_round[round_]

    def opening(self, round_: int) -> Opening | None:
        """Return the opening of a round, if it was opened; of several, that of the first trial."""
        openings = [
            r.claim.opening
            for r in self.unfinished
            if r.claim and r.claim.round == round_ and r.claim.opening
        ]
        if round_ in self._openings:
            openings.append(self._openings[round_])
        return min(openings, key=lambda o: o.opener, default=None)

    def open_round(self, number: int, seed: int) -> Opening:
        """Return the opening of a round that trial ``number`` opens now."""
        unfinished = tuple(record.number for record in self.unfinished)
        return Opening(number, self.num_trials, unfinished, seed)

    def training_records(self, opening: Opening) -> list[Record]:
        """Return the trials to learn from in an opening's training set, sorted by their content.

        Those are the complete ones, and pruned ones that recorded constraints.

        A retried trial has another number than its original. Sorting by content instead makes the
        fitted model the same.
        """
        unfinished = set(opening.unfinished)
        records = [
            record
            for record in self._finished.values()
            if record.number < opening.num_trials
            and record.number not in unfinished
            and (record.values or record.state == TrialState.PRUNED and record.constraints)
            and record.index is not None
        ]
        return sorted(records, key=lambda r: (r.index, r.values, sorted(r.constraints.items())))

    def pending(self, round_: int, opening: Opening) -> Indices:
        """Configurations that were being measured when a round opened, ``[k, parameters]``."""
        records = [self._finished.get(number) for number in opening.unfinished]
        records += [record for record in self.unfinished if record.number in opening.unfinished]
        occupied = {
            index
            for record in records
            if record is not None and (record.claim is None or record.claim.round < round_)
            for index in record.occupied
        }
        rows = np.array(sorted(occupied), dtype=np.int64)
        return rows.reshape(-1, len(self.space.names))

    def _is_same_study(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether the trials still belong to the study that was read before.

        If a study is deleted, the storage may give its identifier to another one.
        """
        if self._first_finished is None:
            return True
        number, stamp = self._first_finished
        trial = trials[number]
        return bool((trial._trial_id, trial.datetime_complete) == stamp)

    def _parse(self, trial: FrozenTrial) -> Record:
        claim = Claim.of(trial.system_attrs)
        if claim is not None and claim.space != self.space.signature:
            claim = None
        params = trial.params
        fixed = enqueued_of(trial.system_attrs)
        if fixed and not trial.state.is_finished():
            params = {**fixed, **params}
        return record_of(trial, self.space, params, claim, is_fixed=bool(fixed))

    def _add(self, trial: FrozenTrial, record: Record) -> None:
        if self._first_finished is None:
            self._first_finished = (trial.number, (trial._trial_id, trial.datetime_complete))
        self._finished[record.number] = record
        self._occupied.update(record.occupied)
        self._num_usable += bool(record.values and record.index is not None)
        if record.claim is None:
            return
        self._top_round = max(self._top_round, record.claim.round)
        self._latest_claimed = max(self._latest_claimed, record.number)
        if record.state in _MEASURED:
            self._measured_by_round[record.claim.round] += 1
        opening = record.claim.opening
        if opening is not None:
            known = self._openings.setdefault(record.claim.round, opening)
            if opening.opener < known.opener:
                self._openings[record.claim.round] = opening


def record_of(
    trial: FrozenTrial,
    space: FiniteSpace,
    params: Mapping[str, Any],
    claim: Claim | None = None,
    *,
    is_fixed: bool = False,
) -> Record:
    """Read a trial whose configuration is ``params``, without values that are not finite.

    Args:
        trial:
            Trial to read.
        space:
            Grid of the configurations.
        params:
            Parameters that the trial measures, by their names on the grid.
        claim:
            Claim of the trial on this grid, if it has one.
        is_fixed:
            Whether it was enqueued with given parameters.

    Returns:
        The record.
    """
    values: tuple[float, ...] = ()
    if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values)):
        values = tuple(trial.values)
    return Record(
        number=trial.number,
        state=trial.state,
        claim=claim,
        index=space.index_of(params),
        is_fixed=is_fixed,
        values=values,
        constraints=constraints_of(trial),
        attrs=trial.user_attrs,
    )
