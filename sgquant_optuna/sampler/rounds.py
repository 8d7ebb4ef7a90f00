"""Joint batches over many workers: which configuration a trial measures, agreed without a lock.

"Give every worker another configuration" is wait-free renaming (Attiya et al., 1990): a worker
writes its choice, reads everybody's, and keeps the choice if no other trial has it. Of two workers
with the same choice, the later writer reads after both writes, sees the earlier one and moves on,
so no configuration is measured twice; this depends on neither seeds nor clocks nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.sampler.candidates import Ranking
from sgquant_optuna.sampler.claims import CLAIM_KEY, FIXED_PARAMS_KEY, Claim, Opening
from sgquant_optuna.sampler.history import History
from sgquant_optuna.sampler.space import FiniteSpace, Index

_MAX_ATTEMPTS = 16


Ranker = Callable[[int, Opening, Mapping[str, Any]], Ranking]
"""Ranks candidates, given the round, its opening and the positions of enqueued parameters."""


RoundSize = Callable[[int, int], int]
"""Trials in a round, given its number and the number of trials when it opened."""


@dataclass(frozen=True)
class Choice:
    """The configuration that a trial will measure, and what was predicted of it."""

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
    """Choose a configuration that no other trial has, and write the claim on it.

    Args:
        study:
            The study; its storage must read its own writes (never an asynchronous replica).
        trial:
            The running trial that asks.
        history:
            The study's history on the grid of the trial's parameters.
        rank:
            Ranks the candidates of a round, the same on every worker.
        round_size:
            Measured trials after which the next round opens, given a round and how many trials
            there were when it opened.
        seed:
            Seed of the round's candidates, if this trial opens it.

    Returns:
        The choice. It may repeat another trial's configuration only if every configuration was
        measured already, or if 16 rivals in turn claimed the same one.
    """
    space, storage, number = history.space, study._storage, trial.number
    attrs = storage.get_trial_system_attrs(trial._trial_id)
    own = Claim.of(attrs)
    choice: Choice | None = None
    if own is not None and own.space == space.signature:  # retried: measure the same again
        choice = Choice(own.index, {})
        history.read(study)
        if trial.params or not history.is_held_by_another(own.index, number):
            return choice
        # Else it was killed between writing its claim and reading everybody's, and lost.
    fixed, is_off_grid = _fixed_positions(space, attrs.get(FIXED_PARAMS_KEY, {}))
    if len(fixed) == len(space.names):  # enqueued whole: nothing to choose
        return Choice(tuple(fixed[name] for name in space.names), {})

    for _ in range(_MAX_ATTEMPTS):
        history.read(study)
        occupied = history.occupied_by_others(number)
        if choice is not None and choice.index not in occupied:
            return choice
        round_ = _current_round(history, round_size)
        opening = history.opening(round_) or history.open_round(number, seed)
        ranking = rank(round_, opening, fixed)
        skipped = _rivals_before(history, number, choice)
        choice = _pick(space, ranking, occupied, skipped, [opening.seed, round_, number], fixed)
        if choice.index in occupied or is_off_grid:  # exhausted, or not ours to claim
            return choice
        claim = Claim(
            round_, choice.index, space.signature, opening if opening.opener == number else None
        )
        storage.set_trial_system_attr(trial._trial_id, CLAIM_KEY, claim.to_json())
    assert choice is not None
    return choice


def _fixed_positions(space: FiniteSpace, fixed: Mapping[str, Any]) -> tuple[dict[str, int], bool]:
    """Positions of the enqueued parameters, and whether one of them is not on the grid."""
    positions = {n: space.position_of(n, fixed[n]) for n in space.names if n in fixed}
    on_grid = {name: p for name, p in positions.items() if p is not None}
    return on_grid, len(on_grid) < len(positions)


def _current_round(history: History, round_size: RoundSize) -> int:
    top = history.top_round
    if top < 0:  # trials of another sampler can stand in for the random round
        return 1 if history.num_usable >= round_size(0, 0) else 0
    opening = history.opening(top)
    size = round_size(top, opening.num_trials if opening is not None else 0)
    return top + 1 if history.measured(top) >= size else top


def _rivals_before(history: History, number: int, lost: Choice | None) -> int:
    """How many candidates to skip because lower-numbered trials are about to take them."""
    running = [
        r for r in history.unfinished if r.state == TrialState.RUNNING and r.number < number
    ]
    if lost is not None:
        return sum(r.claim is not None and r.claim.index == lost.index for r in running)
    # A simultaneous start: skip one for each older trial that has not claimed yet. Those below the
    # newest claim are trials of other samplers, or dead, and will not.
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
    # Every candidate is taken: look further at random, where the grid is larger than the pool.
    drawn = space.random(np.random.default_rng(entropy), 1000)
    for name, position in fixed.items():
        drawn[:, space.names.index(name)] = position
    for index in map(tuple, drawn.tolist()):
        if index not in occupied:
            return Choice(index, {})
    return Choice(tuple(drawn[0].tolist()), {})
