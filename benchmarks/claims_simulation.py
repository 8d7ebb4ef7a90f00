"""Hundreds of workers that claim configurations at once, simulated in one process.

The protocol is the product's (``sampler/rounds.py``), only the ranking is a random order, the same
for all workers of a round. Each worker is a thread, but one runs at a time: at each call to the
storage, a seeded draw decides which goes on. So all interleavings of reads and claims may happen,
and a seed repeats one. Some workers are killed at such a moment.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from pretended_trials import LAYERS

from sgquant_optuna.sampler.candidates import Ranking
from sgquant_optuna.sampler.claims import CLAIM_KEY, Opening
from sgquant_optuna.sampler.history import History
from sgquant_optuna.sampler.rounds import choose
from sgquant_optuna.sampler.space import FiniteSpace

_WIDTHS = optuna.distributions.CategoricalDistribution([1, 2, 4, 8])
_RANKED = 2000  # candidates of a round
_STACK = 256 * 1024  # bytes of a thread


@dataclass(frozen=True)
class Claims:
    """What came of a simulation.

    Args:
        workers:
            Number of workers.
        asked:
            Trials of all workers, without those that kills prevented.
        complete:
            Trials among them that are complete.
        duplicates:
            Complete trials whose configuration another complete trial has.
        seconds:
            Mean processor time of a choice.
        written:
            Mean number of claims that a choice wrote.
    """

    workers: int
    asked: int
    complete: int
    duplicates: int
    seconds: float
    written: float


class _KilledError(BaseException):
    """The end of a worker that is killed."""


class _Turns:
    """Lets one thread run at a time, and draws which."""

    def __init__(self, generator: random.Random) -> None:
        self._random = generator
        self._waiting: list[threading.Semaphore] = []

    def add(self) -> threading.Semaphore:
        turn = threading.Semaphore(0)
        self._waiting.append(turn)
        return turn

    def pass_on(self) -> None:
        """Let one of those that wait go on."""
        if self._waiting:
            place = self._random.randrange(len(self._waiting))
            self._waiting[place], self._waiting[-1] = self._waiting[-1], self._waiting[place]
            self._waiting.pop().release()

    def take(self) -> None:
        """Wait for a turn, perhaps behind others."""
        turn = self.add()
        self.pass_on()
        turn.acquire()


class _Watched:
    """A storage that changes turns before each call that the protocol makes."""

    def __init__(self, simulation: _Simulation, storage: Any) -> None:
        self._simulation, self._storage = simulation, storage

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if name not in ("get_all_trials", "set_trial_system_attr"):
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self._simulation.turns.take()
            if self._simulation.random.random() < self._simulation.deadly:
                raise _KilledError
            if CLAIM_KEY in arguments:
                self._simulation.written += 1
            return method(*arguments, **options)

        return call


class _Simulation:
    def __init__(self, trials: int, layers: int, deadly: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.turns = _Turns(self.random)
        self.trials, self.deadly = trials, deadly
        self.space = FiniteSpace({f"layer{n}": _WIDTHS for n in range(layers)})
        self.study = optuna.create_study(direction="minimize")
        self.study._storage = _Watched(self, self.study._storage)  # type: ignore[assignment]
        self.written, self.choices, self.seconds, self.prevented = 0, 0, 0.0, 0
        self.errors: list[BaseException] = []
        self._rankings: dict[tuple[int, Opening], Ranking] = {}

    def rank(self, round_: int, opening: Opening, fixed: Mapping[str, int]) -> Ranking:
        key = (round_, opening)
        if key not in self._rankings:
            rng = np.random.default_rng([opening.seed, round_])
            drawn = self.space.random(rng, _RANKED)
            self._rankings[key] = Ranking(list(dict.fromkeys(map(tuple, drawn.tolist()))))
        return self._rankings[key]

    def work(self, seed: int, turn: threading.Semaphore) -> None:
        turn.acquire()
        done = 0
        try:
            history = History(self.space)
            for _ in range(self.trials):
                self._one_trial(history, seed)
                done += 1
        except _KilledError:
            self.prevented += self.trials - done
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.turns.pass_on()

    def _one_trial(self, history: History, seed: int) -> None:
        storage: Any = self.study._storage
        trial_id = storage.create_new_trial(self.study._study_id)
        began = time.thread_time()
        choice = choose(
            self.study,
            storage.get_trial(trial_id),
            history,
            self.rank,
            round_size=lambda number: min(max(number // 12, 1), 32),
            seed=seed,
        )
        self.seconds += time.thread_time() - began
        self.choices += 1
        for name, value in self.space.params_of(choice.index).items():
            inner = _WIDTHS.to_internal_repr(value)
            storage.set_trial_param(trial_id, name, inner, _WIDTHS)
        self.turns.take()  # measuring takes any time
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(sum(choice.index))])


def simulate(
    workers: int, *, trials: int = 2, layers: int = LAYERS + 4, deadly: float = 1e-3, seed: int = 0
) -> Claims:
    """Let workers claim at once.

    Args:
        workers:
            Number of workers; all start at once.
        trials:
            Trials of each.
        layers:
            Number of parameters of four choices.
        deadly:
            Probability that a worker is killed at a call to the storage.
        seed:
            Seed of the interleaving and of the kills.
    """
    simulation = _Simulation(trials, layers, deadly, seed)
    before = threading.stack_size(_STACK)
    threads = [
        threading.Thread(target=simulation.work, args=(number, simulation.turns.add()))
        for number in range(workers)
    ]
    for thread in threads:
        thread.start()
    threading.stack_size(before)
    simulation.turns.pass_on()
    for thread in threads:
        thread.join()
    if simulation.errors:
        raise simulation.errors[0]
    study = simulation.study
    complete = study._storage._storage.get_all_trials(  # type: ignore[attr-defined]
        study._study_id, states=(TrialState.COMPLETE,)
    )
    different = {tuple(sorted(trial.params.items())) for trial in complete}
    return Claims(
        workers=workers,
        asked=workers * trials - simulation.prevented,
        complete=len(complete),
        duplicates=len(complete) - len(different),
        seconds=simulation.seconds / max(simulation.choices, 1),
        written=simulation.written / max(simulation.choices, 1),
    )
