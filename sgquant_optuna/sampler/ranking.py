"""The ranking of one round: candidates in the order in which they should be measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

import numpy as np

from sgquant_optuna.sampler.acquisition import AcquisitionFunction, acquisition_function
from sgquant_optuna.sampler.candidates import (
    Ranking,
    anchors,
    distinct,
    neighbours,
    random_candidates,
)
from sgquant_optuna.sampler.claims import GAIN
from sgquant_optuna.sampler.cost_model import DEFAULT_COST_MODEL, CostModel, CostModelName
from sgquant_optuna.sampler.filling import filled_by_model, near_or_better
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.ladder import open_rungs
from sgquant_optuna.sampler.paper import rank_as_paper
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Index, Indices
from sgquant_optuna.sampler.surrogate import CostModels, Posterior, Prior
from sgquant_optuna.sampler.warm_start import Transfer, recommend

_logger = logging.getLogger("sgquant_optuna")

_MIN_MEASURED = 2
_STARTS = 4  # uniform configurations that are measured within a known constraint
_PARENTS = 10  # best measured configurations whose neighbours are candidates
_REFINED = 20  # best candidates whose neighbours are candidates, too
_SHORTLIST = 300  # best candidates from which the batch is chosen jointly
_KEPT = 500  # best candidates that are compared with the neighbours of the very best
_RANKED = 300  # candidates that are left for the round
_RECOMMENDED = 8  # configurations of a warm start that are measured before the models choose


class Acquisition(StrEnum):
    """Method that chooses the candidates."""

    DEFAULT = "default"
    PAPER = "paper"

    @classmethod
    def _missing_(cls, value: object) -> None:
        names = ", ".join(repr(str(member)) for member in cls)
        raise ValueError(f"acquisition: expected one of {names}, got {value!r}")


def rank_candidates(
    problem: Problem,
    acquisition: Acquisition,
    *,
    round_: int,
    rng: np.random.Generator,
    n_measure: int,
    n_sample: int,
    fixed: Mapping[str, int],
    pending: Indices | None = None,
    transfer: Transfer | None = None,
    cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
) -> Ranking:
    """Rank the candidates of one round.

    A cost model that cannot be fitted must not end the study: the round is random then, with a
    warning in the log.

    Args:
        problem:
            Measurements that the round learns from.
        acquisition:
            Method that chooses the candidates.
        round_:
            Number of the round; round 0 can learn from other studies only.
        rng:
            Source of randomness, the same on every worker.
        n_measure:
            Trials that are chosen jointly.
        n_sample:
            Number of random candidates.
        fixed:
            Positions of enqueued parameters.
        pending:
            Configurations that other workers measure already, ``[k, parameters]``.
        transfer:
            Knowledge from another study, if there is any.
        cost_model:
            Regression of the targets; the paper's acquisition has its own.

    Returns:
        Candidates, best first.
    """
    ranking, first = None, list[Index]()
    can_learn = round_ > 0 and len(problem.measured) >= _MIN_MEASURED
    try:
        if acquisition == Acquisition.DEFAULT:
            first = _start(problem, rng, n_sample, fixed, transfer)
        if can_learn and acquisition == Acquisition.PAPER:
            ranking = rank_as_paper(problem, rng, n_sample, fixed)
        elif can_learn:
            ranking = rank_by_model(
                problem,
                rng,
                n_measure=n_measure,
                n_sample=n_sample,
                fixed=fixed,
                pending=pending,
                priors=transfer.priors if transfer is not None else None,
                cost_model=cost_model,
            )
    except Exception as error:  # whatever fails here, a random round keeps the study going
        _logger.warning("Round %d is random: the cost model failed: %r", round_, error)
    if ranking is None:
        pool = random_candidates(problem.space, rng, n_sample, fixed)
        ranking = Ranking(_rows(pool))
    constraint = problem.known_constraint
    if constraint is not None:
        ranking = _admitted(ranking, constraint, rng, fixed)
        # Brought within the limit, rungs are not those that the ladder looks for: four are enough.
        is_start = len(problem.measured) < _STARTS
        first = (
            _rows(_filled(constraint, np.array(first), rng, fixed)) if first and is_start else []
        )
    return ranking.after(first) if first else ranking


def _filled(
    constraint: KnownConstraint, rows: Indices, rng: np.random.Generator, fixed: Mapping[str, int]
) -> Indices:
    return constraint.filled(constraint.within(rows, rng, fixed), rng, fixed)


def _admitted(
    ranking: Ranking,
    constraint: KnownConstraint,
    rng: np.random.Generator,
    fixed: Mapping[str, int],
) -> Ranking:
    """Keep to the known constraint, whatever made the ranking.

    What was predicted keeps its place or is dropped; what is only a start is brought within the
    limit and fills it up.
    """

    def admit(rows: Indices, rng: np.random.Generator) -> Indices:
        filled = _filled(constraint, rows, rng, fixed)
        listed = distinct(constraint.listed(rng, len(rows)), rng, constraint.space, fixed)
        return np.concatenate([filled, listed[constraint.holds(listed)]])

    rows = np.array(ranking.configurations, dtype=np.int64)
    if not len(rows):
        return replace(ranking, admit=admit)
    if not ranking.predictions:
        admitted = dict.fromkeys(_rows(admit(rows, rng)))
        return Ranking(list(admitted), admit=admit)
    kept = np.flatnonzero(constraint.holds(rows))
    return Ranking(_rows(rows[kept]), [ranking.predictions[i] for i in kept], admit)


def rank_by_model(
    problem: Problem,
    rng: np.random.Generator,
    *,
    n_measure: int,
    n_sample: int,
    fixed: Mapping[str, int],
    pending: Indices | None = None,
    priors: Mapping[str, Prior] | None = None,
    cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
) -> Ranking:
    """Rank candidates by the expected improvement under cost models.

    Args:
        problem:
            Measurements so far; at least one.
        rng:
            Source of randomness.
        n_measure:
            Trials that are chosen jointly, given those that are pending. Where nothing else is
            measured at the same time, the order of the scores is the best one.
        n_sample:
            Number of random candidates, and of neighbours of the best measured configurations.
        fixed:
            Positions of enqueued parameters.
        pending:
            Configurations that other workers measure already, ``[k, parameters]``.
        priors:
            Predictions of another study's models by the name of the target.
        cost_model:
            Regression of the targets.

    Returns:
        Candidates that were not measured yet, best first.
    """
    if pending is None:
        pending = problem.measured[:0]
    seed = int(rng.integers(2**31))
    models = CostModels(problem, seed=seed, priors=priors, cost_model=cost_model)
    measured = models.posterior(problem.measured)
    acquisition = acquisition_function(models, measured)
    candidates = _candidates(models, acquisition, rng, n_sample, fixed, pending)
    if candidates is None:
        return Ranking([])
    candidates = near_or_better(models, candidates, measured)
    candidates = candidates.subset(_order(acquisition, candidates)[: max(_RANKED, 4 * n_measure)])
    if n_measure > 1 or len(pending):
        shortlist = np.concatenate([pending, candidates.indices[:_SHORTLIST]])
        chosen = acquisition.batch(
            models.posterior(shortlist), 2 * n_measure, rng, pending=len(pending)
        )
        first = np.array(chosen, dtype=np.int64) - len(pending)
        rest = np.setdiff1d(np.arange(len(candidates.indices)), first)
        candidates = candidates.subset(np.concatenate([first, rest]))
    predictions = models.in_units(candidates)
    gains = acquisition.gain(candidates)
    if gains is not None:
        for prediction, gain in zip(predictions, gains.tolist(), strict=True):
            prediction[GAIN] = gain
    return Ranking(_rows(candidates.indices), predictions)


def _candidates(
    models: CostModels,
    acquisition: AcquisitionFunction,
    rng: np.random.Generator,
    n_sample: int,
    fixed: Mapping[str, int],
    pending: Indices,
) -> Posterior | None:
    """Posterior of the candidates that nobody measured or measures; ``None`` if there are none."""
    problem, space = models.problem, models.problem.space
    taken = np.concatenate([problem.measured, pending])
    parents = problem.measured[acquisition.best_measured()[:_PARENTS]]
    pool = np.concatenate(
        [
            random_candidates(space, rng, n_sample, fixed),
            neighbours(space, rng, parents, n_sample),
            anchors(space),
        ]
    )
    constraint = problem.known_constraint
    if constraint is not None:
        within = constraint.within(distinct(pool, rng, space, fixed), rng, fixed)
        filled = constraint.filled(within, rng, fixed)
        pool = np.concatenate([within, filled, constraint.listed(rng, n_sample)])
    pool = space.without(distinct(pool, rng, space, fixed), taken)
    if constraint is not None:
        pool = pool[constraint.holds(pool)]
    if not len(pool):
        return None
    candidates = models.posterior(acquisition.promising(pool))
    # A second step to neighbours of the best candidates: a grid has no gradient to follow.
    order = _order(acquisition, candidates)
    near = neighbours(space, rng, candidates.indices[order[:_REFINED]], n_sample // 2)
    if constraint is not None:
        starts = np.concatenate([parents, candidates.indices[order[:_REFINED]]])
        near = _filled(constraint, near, rng, fixed)
        near = np.concatenate([near, filled_by_model(models, starts, rng, fixed)])
    kept = np.concatenate([candidates.indices[order[:_KEPT]], near])
    pool = space.without(distinct(kept, rng, space, fixed), taken)
    return models.posterior(acquisition.promising(pool))


def _order(acquisition: AcquisitionFunction, candidates: Posterior) -> Indices:
    """Positions of candidates, those with the highest score first."""
    return np.argsort(-acquisition.score(candidates), kind="stable")


def _start(
    problem: Problem,
    rng: np.random.Generator,
    n_sample: int,
    fixed: Mapping[str, int],
    transfer: Transfer | None,
) -> list[Index]:
    """Configurations to measure before the models choose: the ladder, or what is recommended."""
    if transfer is None:
        return open_rungs(problem, rng, fixed)
    if len(problem.measured) >= _RECOMMENDED:
        return []
    return recommend(transfer.problem, rng, size=_RECOMMENDED, n_sample=n_sample, fixed=fixed)


def _rows(pool: Indices) -> list[Index]:
    return list(map(tuple, pool.tolist()))
