"""Rounds: many workers agree without a lock on which configuration each trial measures.

"Give every worker another configuration" is wait-free renaming (Attiya et al., 1990): a worker
records its claim, reads the claims of all others, and keeps the configuration if no other trial
has it. If two workers claim the same one, the later of them reads after both claims were recorded,
finds the earlier claim and takes another configuration. So no configuration is measured twice;
this depends on neither seeds nor clocks nor models.

Reference:
    Attiya et al. (1990), "Renaming in an Asynchronous Environment".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.sampler.candidates import Ranking
from sgquant_optuna.sampler.claims import CLAIM_KEY, Claim, Opening, enqueued_of
from sgquant_optuna.sampler.history import History
from sgquant_optuna.sampler.space import FiniteSpace, Index

_MAX_ATTEMPTS = 64
_LOST_IN_A_CROWD = 4  # lost claims after which a trial draws the number of candidates to leave
_DRAWS_BEYOND_RANKING = 1000

Ranker = Callable[[int, Opening, Mapping[str, int]], Ranking]
"""Ranks candidates, given the round, its opening and the positions of enqueued parameters."""

RoundSize = Callable[[int], int]
"""Measured trials that end a round, given the number of trials at its opening.

With w workers, a round of one has w trials: while its first is measured, each other worker comes
free once and joins it. So a batch grows and shrinks with the workers that live.
"""


@dataclass(frozen=True)
class Choice:
    """The configuration that a trial will measure, with its prediction.

    Args:
        index:
            Configuration.
        prediction:
            Prediction to record with the trial; empty if there is none.
    """

    index: Index
    prediction: dict[str, float]


def choose(
    study: Study,
    trial: FrozenTrial,
    history: History,
    rank: Ranker,
    *,
    round_size: RoundSize,
    seed: int,
) -> Choice:
    """Choose a configuration that no other trial has, and record the claim on it.

    Args:
        study:
            Study of the trial. Its storage must read its own writes, so it must not be an
            asynchronous replica.
        trial:
            Running trial that needs a configuration.
        history:
            History of the study on the grid of the trial's parameters.
        rank:
            Function that ranks the candidates of a round, the same on every worker.
        round_size:
            Number of measured trials after which the next round opens, given the number of trials
            at its opening.
        seed:
            Seed of the candidates of the round, if this trial opens it.

    Returns:
        The choice. It repeats the configuration of another trial only if every configuration was
        measured already, or if other trials claimed 64 in a row of those that it chose.
    """
    space, storage, number = history.space, study._storage, trial.number
    attrs = storage.get_trial_system_attrs(trial._trial_id)
    own = Claim.of(attrs)
    choice: Choice | None = None
    if own is not None and own.space == space.signature:  # a retry measures the same again
        choice = Choice(own.index, {})
        history.read(study)
        if trial.params or not history.is_held_by_another(own.index, number):
            return choice
        # Its worker was killed after it recorded the claim and before it read an earlier one.
    fixed, is_off_grid = _fixed_positions(space, enqueued_of(attrs))
    if len(fixed) == len(space.names):  # all parameters are enqueued: there is nothing to choose
        return Choice(tuple(fixed[name] for name in space.names), {})

    for attempt in range(_MAX_ATTEMPTS):
        history.read(study)
        occupied = history.occupied_by_others(number)
        if choice is not None and choice.index not in occupied:
            return choice
        choice, claim = _next_choice(
            history, number, rank, round_size, seed, fixed, occupied, lost=choice, attempt=attempt
        )
        if choice.index in occupied or is_off_grid:  # exhausted, or not on the grid to claim
            return choice
        storage.set_trial_system_attr(trial._trial_id, CLAIM_KEY, claim.to_json())
    assert choice is not None
    return choice


def _fixed_positions(space: FiniteSpace, fixed: Mapping[str, Any]) -> tuple[dict[str, int], bool]:
    """Positions of the enqueued parameters, and whether one of them is not on the grid."""
    positions = {n: space.position_of(n, fixed[n]) for n in space.names if n in fixed}
    on_grid = {name: p for name, p in positions.items() if p is not None}
    return on_grid, len(on_grid) < len(positions)


def _next_choice(
    history: History,
    number: int,
    rank: Ranker,
    round_size: RoundSize,
    seed: int,
    fixed: Mapping[str, int],
    occupied: set[Index],
    *,
    lost: Choice | None,
    attempt: int,
) -> tuple[Choice, Claim]:
    """Choose from the ranking of the current round, and return the claim to record.

    ``lost`` is the configuration that the trial claimed before and found occupied, ``attempt``
    the number of those that it lost.
    """
    space = history.space
    round_ = _current_round(history, round_size)
    opening = history.opening(round_) or history.open_round(number, seed)
    ranking = rank(round_, opening, fixed)
    skipped = _num_reserved(history, number, lost)
    entropy = [opening.seed, round_, number]
    if attempt >= _LOST_IN_A_CROWD:
        # Hundreds that choose at once see each other's claims in part, so that many leave equally
        # many candidates, and meet again. A drawn number parts them.
        entropy.append(attempt)
        skipped = int(np.random.default_rng(entropy).integers(len(history.unfinished) + 1))
    choice = _pick(space, ranking, occupied, skipped, entropy, fixed)
    is_opener = opening.opener == number
    return choice, Claim(round_, choice.index, space.signature, opening if is_opener else None)


def _current_round(history: History, round_size: RoundSize) -> int:
    top = history.top_round
    if top < 0:  # trials of another sampler can take the place of the first round
        return 1 if history.num_usable >= round_size(0) else 0
    opening = history.opening(top)
    size = round_size(opening.num_trials if opening is not None else 0)
    return top + 1 if history.measured(top) >= size else top


def _num_reserved(history: History, number: int, lost: Choice | None) -> int:
    """Count the candidates to leave to trials with a lower number, which are about to claim."""
    running = [
        r for r in history.unfinished if r.state == TrialState.RUNNING and r.number < number
    ]
    if lost is not None:
        return sum(r.claim is not None and r.claim.index == lost.index for r in running)
    # Several workers started at once: leave one candidate to each older trial without a claim.
    # Trials below the newest claim will not claim: another sampler runs them, or they were killed.
    newest = history.latest_claimed
    return sum(
        r.claim is None and r.index is None and not r.is_fixed and r.number > newest
        for r in running
    )


def _pick(
    space: FiniteSpace,
    ranking: Ranking,
    occupied: set[Index],
    skipped: int,
    entropy: list[int],
    fixed: Mapping[str, int],
) -> Choice:
    """Take the best candidate that is not occupied, after ``skipped`` of them."""
    last: Choice | None = None
    for position, index in enumerate(ranking.configurations):
        if index in occupied:
            continue
        prediction = ranking.predictions[position] if ranking.predictions else {}
        last = Choice(index, prediction)
        if skipped == 0:
            return last
        skipped -= 1
    if last is not None:
        return last
    # Every candidate is occupied. The grid may be larger than the ranking, so draw from all of it.
    rng = np.random.default_rng(entropy)
    drawn = space.random(rng, _DRAWS_BEYOND_RANKING)
    for name, position in fixed.items():
        drawn[:, space.names.index(name)] = position
    if ranking.admit is not None:
        drawn = ranking.admit(drawn, rng)
    for index in map(tuple, drawn.tolist()):
        if index not in occupied:
            return Choice(index, {})
    return Choice(tuple(drawn[0].tolist()), {})
