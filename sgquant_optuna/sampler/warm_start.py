"""What another study teaches: its trials, carried over to this grid.

A parameter takes the value of the source's parameter of the same name. Where a name is missing,
names of the form ``layer/component[/bucketN]`` are matched by the layer's position from input to
output (relative, so that networks of other depths match), the component and the bucket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from sgquant_optuna.sampler.history import Record, record_of
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Features, FiniteSpace, Floats
from sgquant_optuna.sampler.surrogate import Prior, Surrogate


@dataclass(frozen=True)
class Transfer:
    """What another study taught, on the grid of this one.

    Args:
        problem:
            The other study's measurements, as if they were made here.
        priors:
            Expected targets by name, before anything is measured here.
    """

    problem: Problem
    priors: Mapping[str, Prior]


class Source:
    """The complete trials of another study, as they were when it was given.

    Args:
        study:
            The other study.

    Raises:
        ValueError:
            If it has no complete trial.
    """

    def __init__(self, study: Study) -> None:
        """Copy the trials, so that later ones do not change what workers agree on."""
        self._trials = study.get_trials(deepcopy=True, states=(TrialState.COMPLETE,))
        self.directions = study.directions
        if not self._trials:
            raise ValueError(
                f"warm start: expected complete trials in study {study.study_name!r}, got none"
            )

    def transfer(
        self,
        space: FiniteSpace,
        directions: Sequence[StudyDirection],
        known: KnownObjective | None,
    ) -> Transfer | None:
        """Carry the trials over to a grid; ``None`` if nothing fits it."""
        if list(directions) != list(self.directions):
            return None
        names = corresponding_names(space.names, sorted(self._trials[0].params))
        if names is None:
            return None
        distributions = self._trials[0].distributions
        # An index into widths says nothing of a width, though some numbers are both.
        if not all(space.is_of_kind(name, distributions[names[name]]) for name in names):
            return None
        records: list[Record] = []
        for trial in self._trials:
            if all(source in trial.params for source in names.values()):
                params = {name: trial.params[source] for name, source in names.items()}
                record = record_of(trial, space, params)
                if record.index is not None and record.values:
                    records.append(record)
        if len(records) < 2:
            return None
        problem = Problem(space, records, directions, known)
        priors = {target.name: _prior(Surrogate(target, seed=0)) for target in problem.targets}
        return Transfer(problem, priors)


def corresponding_names(names: Sequence[str], sources: Sequence[str]) -> dict[str, str] | None:
    """Match every parameter with one of another study.

    Args:
        names:
            Names to match.
        sources:
            Names of the other study.

    Returns:
        The other study's name of each, or ``None`` if one has no counterpart.
    """
    own, other = _sites(names), _sites(sources)
    matches = {}
    for name in names:
        if name in other:
            matches[name] = name
            continue
        site = own[name]
        candidates = [s for s in sources if other[s].component == site.component]
        if not candidates or site.position is None:
            return None
        distance = [(other[s].distance(site), s) for s in candidates]
        matches[name] = min(distance)[1]
    return matches


@dataclass(frozen=True)
class _Site:
    position: float | None  # of the layer, 0 at the input and 1 at the output
    component: str
    bucket: int

    def distance(self, other: _Site) -> tuple[float, int]:
        layers = abs((self.position or 0.0) - (other.position or 0.0))
        return layers, abs(self.bucket - other.bucket)


def _sites(names: Sequence[str]) -> dict[str, _Site]:
    parsed = {name: _split(name) for name in names}
    layers = sorted({layer for layer, _, _ in parsed.values() if layer}, key=_natural)
    last = max(len(layers) - 1, 1)
    return {
        name: _Site(layers.index(layer) / last if layer else None, component, bucket)
        for name, (layer, component, bucket) in parsed.items()
    }


def _split(name: str) -> tuple[str, str, int]:
    """Layer, component and bucket of ``layer/component[/bucketN]``; else a layer by itself."""
    *head, tail = name.split("/")
    bucket = 0
    if head and (match := re.fullmatch(r"bucket(\d+)", tail)):
        bucket = int(match[1])
        *head, tail = head
    return ("/".join(head), tail, bucket) if head else (tail, "", bucket)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort ``conv10`` after ``conv9``."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]


def _prior(surrogate: Surrogate) -> Prior:
    def expected(features: Features) -> Floats:
        return surrogate.unwarp(surrogate.predict(features).mean)

    return expected
