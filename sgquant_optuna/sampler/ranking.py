"""One round's ranking: candidates in the order in which they should be measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from sgquant_optuna.sampler.candidates import Ranking, anchors, distinct, random_candidates
from sgquant_optuna.sampler.model_ranking import rank_by_model
from sgquant_optuna.sampler.paper import rank_as_paper
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.recommend import recommend
from sgquant_optuna.sampler.space import Index, Indices
from sgquant_optuna.sampler.warm_start import Transfer

_logger = logging.getLogger("sgquant_optuna")

_MIN_MEASURED = 2


class Acquisition(StrEnum):
    """How candidates are chosen."""

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
    transfer: Transfer | None = None,
) -> Ranking:
    """Rank the candidates of one round.

    A cost model that cannot be fitted must not end the study: the round is random then, with a
    warning in the log.

    Args:
        problem:
            The measurements that the round learns from.
        acquisition:
            How candidates are chosen.
        round_:
            The round; round 0 has nothing to learn from but other studies.
        rng:
            Source of randomness, the same on every worker.
        n_measure:
            Trials in the round.
        n_sample:
            Random candidates.
        fixed:
            Positions of enqueued parameters.
        transfer:
            What other studies taught, if anything.

    Returns:
        Candidates, best first.
    """
    ranking = None
    try:
        if acquisition == Acquisition.PAPER:
            if round_ > 0 and len(problem.measured) >= _MIN_MEASURED:
                ranking = rank_as_paper(problem, rng, n_sample, fixed)
        elif round_ > 0 and len(problem.measured) >= _MIN_MEASURED:
            ranking = rank_by_model(
                problem,
                rng,
                n_measure=n_measure,
                n_sample=n_sample,
                fixed=fixed,
                priors=transfer.priors if transfer is not None else None,
            )
        else:
            ranking = _first_round(problem, rng, n_measure, n_sample, fixed, transfer)
    except Exception as error:  # whatever fails here, a random round keeps the study going
        _logger.warning("Round %d is random: the cost model failed: %r", round_, error)
    if ranking is None:
        pool = random_candidates(problem.space, rng, n_sample, fixed)
        ranking = Ranking(_rows(pool))
    return ranking


def _first_round(
    problem: Problem,
    rng: np.random.Generator,
    n_measure: int,
    n_sample: int,
    fixed: Mapping[str, int],
    transfer: Transfer | None,
) -> Ranking:
    """Spread uniform configurations among random ones, or among what another study recommends."""
    space = problem.space
    heights = anchors(space)
    count = min(len(heights), max(n_measure // 2, 1))
    heights = heights[np.unique(np.linspace(len(heights) - 1, 0, count).round().astype(int))]
    first = _rows(distinct(heights, rng, space, fixed))
    recommended: list[Index] = []
    if transfer is not None:
        first = first[: max(len(first) // 2, 1)]
        recommended = recommend(
            transfer.problem, rng, size=n_measure, n_sample=n_sample, fixed=fixed
        )
    recommended += _rows(random_candidates(space, rng, n_sample, fixed))
    mixed = [c for pair in zip(first, recommended, strict=False) for c in pair]
    return Ranking(list(dict.fromkeys([*mixed, *recommended])))


def _rows(pool: Indices) -> list[Index]:
    return list(map(tuple, pool.tolist()))
