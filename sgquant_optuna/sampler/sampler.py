"""The sampler: Optuna's interface, with no state but the trials in the storage."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.sampler.blas_threads import one_blas_thread
from sgquant_optuna.sampler.candidates import Ranking
from sgquant_optuna.sampler.claims import PREDICTED_KEY, Opening
from sgquant_optuna.sampler.cost_model import (
    DEFAULT_COST_MODEL,
    CostModel,
    CostModelName,
    check_cost_model,
)
from sgquant_optuna.sampler.history import History, Record
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.known_objective import KnownFunction, KnownObjective
from sgquant_optuna.sampler.problem import Problem, sign_of
from sgquant_optuna.sampler.ranking import Acquisition, rank_candidates
from sgquant_optuna.sampler.rounds import Choice, choose
from sgquant_optuna.sampler.space import FiniteSpace, is_finite, single_value
from sgquant_optuna.sampler.warm_start import Source, Transfer

JointConstraints = Callable[[Sequence[Mapping[str, Any]]], Sequence[Sequence[float] | None]]

_logger = logging.getLogger("sgquant_optuna")

_MAX_RANKINGS = 8
_PAPER_N_MEASURE = 10
_TRIALS_PER_SLOT = 30  # trials in the history for each trial in a round: 3 % of it
_MAX_N_MEASURE = 100


class SGQuantSampler(BaseSampler):
    """Samples finite, constrained and noisy search spaces in joint batches.

    Measure ``n_measure`` configurations, fit a cost model, rank ``n_sample`` candidates, measure
    the best ``n_measure``, and so on. The sampler needs nothing but the trials of the study.
    Workers in any number of processes and hosts, also those that restart or join late, continue
    the same sequence and never measure a configuration twice while another is left.

    Parameters with infinitely many values (floats without a step) go to ``independent_sampler``.
    A parameter whose choices change within a study stops the study, as with every sampler of
    Optuna: a categorical distribution cannot change.

    Args:
        search_space:
            Parameters of the grid. Without it, those that all complete trials share are used, so
            the first trials are sampled independently and may repeat each other.
        n_measure:
            Trials in a round (the paper's N_mea). The default for ``"paper"`` is 10. The default
            for ``"default"`` is 1, growing to 3 % of a long history: its model is cheap enough to
            be fitted often. While the first of a round is measured, each other worker joins the
            round once, so that a round has a trial for each worker that lives.
        n_sample:
            Candidates to rank in a round (the paper's N_sample).
        acquisition:
            Method that ranks the candidates. ``"default"``: expected improvement times probability
            of feasibility, or expected hypervolume improvement, with candidates near the best.
            ``"paper"``: the paper's five steps.
        cost_model:
            Regression that the ``"default"`` acquisition learns costs with: ``"blend"``,
            ``"gaussian_process"``, ``"boosted"``, or an object as :class:`CostModel` describes it,
            the same on all workers.
        known_objective:
            Function that computes one objective from the parameters, for instance memory in bytes,
            so that it need not be learned. In a study with constraints it should return the value
            without any penalty. It must be deterministic and the same on all workers. Its errors
            are raised.
        known_objective_index:
            Position in the study of the objective that ``known_objective`` computes.
        joint_constraints:
            Function that computes the constraints of trials anew from the user attributes of all
            of them, where a constraint depends on what other trials measured. It returns the
            constraint values of each trial (0 and below are feasible), or ``None`` for one whose
            recorded constraints stay. It must be deterministic, and must not depend on the order.
        known_constraint:
            Function that computes a constraint from the parameters, for instance memory divided by
            a budget, less 1. It holds at 0 and below. No configuration that breaks it is proposed,
            and trials that break it are not learned from. It needs ``search_space``, and is called
            as ``known_objective`` is.
        known_constraint_slack:
            Distance below 0, in the unit of ``known_constraint``, within which a budget counts as
            used up. Configurations are filled up to it; others are proposed only where the model
            predicts them to be better. ``None`` for a constraint that is not a budget.
        known_constraint_name:
            Name under which the trials record ``known_constraint``, if they do, so that it is not
            learned: ``"0"`` for the first of a list.
        seed:
            Seed of the candidates. Workers may have different seeds: a round uses the seed of the
            worker that opened it.
        independent_sampler:
            Sampler of the parameters that the grid cannot hold; by default a ``RandomSampler``.

    Raises:
        ValueError:
            If a number is too small, the acquisition or the cost model is unknown, the search
            space is empty, or no configuration of it satisfies ``known_constraint``.
        TypeError:
            If the cost model is an object without the methods of :class:`CostModel`.

    Example:
        ::

            space = {f"conv{i}": CategoricalDistribution([1, 2, 4, 8]) for i in range(4)}
            study = optuna.create_study(sampler=SGQuantSampler(space, seed=0))
            study.optimize(objective, n_trials=40)

    Reference:
        SGQuant, "Auto-bit Selection", for the loop; the claims follow Attiya et al. (1990),
        "Renaming in an asynchronous environment".
    """

    def __init__(
        self,
        search_space: dict[str, BaseDistribution] | None = None,
        *,
        n_measure: int | None = None,
        n_sample: int = 2000,
        acquisition: str = "default",
        cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
        known_objective: Callable[[dict[str, Any]], float] | None = None,
        known_objective_index: int = 0,
        joint_constraints: JointConstraints | None = None,
        known_constraint: Callable[[dict[str, Any]], float] | None = None,
        known_constraint_slack: float | None = None,
        known_constraint_name: str | None = None,
        seed: int | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        """Check the arguments; nothing is read or drawn yet."""
        if search_space is not None and not search_space:
            raise ValueError("search_space: expected at least one parameter, got none")
        if n_measure is not None and n_measure < 1:
            raise ValueError(f"n_measure: expected at least 1, got {n_measure}")
        if n_sample < 1:
            raise ValueError(f"n_sample: expected at least 1, got {n_sample}")
        if known_objective_index < 0:
            raise ValueError(
                f"known_objective_index: expected at least 0, got {known_objective_index}"
            )
        if known_constraint is not None and search_space is None:
            raise ValueError("known_constraint: expected search_space with it, got none")
        if known_constraint_slack is not None and known_constraint_slack < 0:
            raise ValueError(
                f"known_constraint_slack: expected at least 0, got {known_constraint_slack}"
            )
        if seed is not None and seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self._acquisition = Acquisition(acquisition)
        self._cost_model = check_cost_model(cost_model)
        self._search_space = dict(search_space) if search_space is not None else None
        self._n_measure = n_measure
        self._n_sample = n_sample
        self._known_objective = known_objective
        self._known_objective_index = known_objective_index
        self._joint_constraints = joint_constraints
        self._known_constraint = known_constraint
        self._known_constraint_slack = known_constraint_slack
        self._known_constraint_name = known_constraint_name
        self._source: Source | None = None
        self._seed = _fresh_seed() if seed is None else seed
        self._independent_sampler = independent_sampler or RandomSampler(seed=seed)
        self._start_cache()

    def _start_cache(self) -> None:
        # All of it can be recomputed from the storage. The threads of one study share it.
        self._lock = threading.RLock()
        self._caches: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], _Cache]] = (
            weakref.WeakKeyDictionary()
        )
        self._intersections: weakref.WeakKeyDictionary[Any, dict[int, IntersectionSearchSpace]] = (
            weakref.WeakKeyDictionary()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock and the cache, so that the sampler can be sent to other processes."""
        state = self.__dict__.copy()
        for name in ("_lock", "_caches", "_intersections"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with an empty cache."""
        self.__dict__.update(state)
        self._start_cache()

    def warm_start(self, study: Study) -> None:
        """Learn from another study, of another graph or model, before anything is measured.

        The cost model of the other study is the prior mean of this study's model, which
        measurements correct. The first eight trials measure its recommendations in the place of
        uniform configurations. Parameters are matched by name, or by layer position, component
        and degree bucket. A study whose parameters, directions or named metrics do not correspond
        is ignored,
        with a warning in the log. Give all workers the same study, before the first trial.

        Args:
            study:
                Other study; its complete trials are copied now.

        Raises:
            ValueError:
                If it has no complete trial.
        """
        self._source = Source(study)
        self._start_cache()

    def reseed_rng(self) -> None:
        """Reseed the independent sampler only: every thread continues the same rounds."""
        self._independent_sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forward to the independent sampler."""
        self._independent_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Forward to the independent sampler; this sampler keeps no state."""
        self._independent_sampler.after_trial(study, trial, state, values)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters of the grid that have more than one value."""
        space = self._search_space
        if space is None:
            with self._lock:
                known = self._intersections.setdefault(study._storage, {})
                intersection = known.setdefault(study._study_id, IntersectionSearchSpace())
                space = intersection.calculate(study)
        return {name: d for name, d in space.items() if is_finite(d) and not d.single()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample a parameter that is not on the grid with the independent sampler."""
        return self._independent_sampler.sample_independent(
            study, trial, param_name, param_distribution
        )

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Claim a configuration for the trial and return its parameters."""
        finite = {name: d for name, d in search_space.items() if is_finite(d)}
        params = {
            name: self.sample_independent(study, trial, name, d)
            for name, d in search_space.items()
            if name not in finite
        }
        if not finite:
            return params
        with self._lock:
            cache = self._cache(study, finite)
            choice = choose(
                study,
                trial,
                cache.history,
                lambda round_, opening, fixed: self._rank(study, cache, round_, opening, fixed),
                round_size=self._round_size,
                seed=self._seed,
            )
        self._record_prediction(study, trial, choice)
        return params | cache.history.space.params_of(choice.index)

    def _cache(self, study: Study, finite: Mapping[str, BaseDistribution]) -> _Cache:
        caches = self._caches.setdefault(study._storage, {})
        space = FiniteSpace(finite)
        return caches.setdefault(
            (study._study_id, study.study_name, space.signature), _Cache(space)
        )

    def _rank(
        self,
        study: Study,
        cache: _Cache,
        round_: int,
        opening: Opening,
        fixed: Mapping[str, int],
    ) -> Ranking:
        key = (round_, opening, tuple(sorted(fixed.items())))
        ranking = cache.rankings.get(key)
        if ranking is None:
            problem = Problem(
                cache.history.space,
                self._training_records(cache, opening),
                study.directions,
                self._known(study, cache),
                self._constraint(cache),
            )
            with one_blas_thread():
                ranking = rank_candidates(
                    problem,
                    self._acquisition,
                    round_=round_,
                    rng=np.random.default_rng([opening.seed, round_]),
                    # Each worker that lived at the opening, with the opener, joins the round once.
                    n_measure=max(
                        self._round_size(opening.num_trials),
                        min(len(opening.unfinished), _MAX_N_MEASURE),
                    ),
                    n_sample=self._n_sample,
                    fixed=fixed,
                    pending=cache.history.pending(round_, opening),
                    transfer=self._transfer(study, cache),
                    cost_model=self._cost_model,
                )
            while len(cache.rankings) >= _MAX_RANKINGS:
                del cache.rankings[next(iter(cache.rankings))]
            cache.rankings[key] = ranking
        return ranking

    def _training_records(self, cache: _Cache, opening: Opening) -> list[Record]:
        records = cache.history.training_records(opening)
        if self._joint_constraints is None or not records:
            return records
        anew = self._joint_constraints([record.attrs for record in records])
        return [
            record
            if values is None
            else replace(record, constraints={str(i): float(v) for i, v in enumerate(values)})
            for record, values in zip(records, anew, strict=True)
        ]

    def _round_size(self, num_trials: int) -> int:
        if self._n_measure is not None:
            return self._n_measure
        if self._acquisition == Acquisition.PAPER:
            return _PAPER_N_MEASURE
        # In a long history one more trial teaches less, and fitting takes longer.
        return min(max(num_trials // _TRIALS_PER_SLOT, 1), _MAX_N_MEASURE)

    def _transfer(self, study: Study, cache: _Cache) -> Transfer | None:
        if self._source is not None and not cache.has_read_source:
            cache.has_read_source = True
            if not self._source.has_other_metrics(study):
                cache.transfer = self._source.transfer(
                    cache.history.space, study.directions, self._known(study, cache)
                )
            if cache.transfer is None:
                _logger.warning(
                    "Warm start: the other study's parameters, directions or metrics "
                    "do not correspond to those of study %r; it is ignored.",
                    study.study_name,
                )
        return cache.transfer

    def _known(self, study: Study, cache: _Cache) -> KnownObjective | None:
        if self._known_objective is None:
            return None
        if cache.known is None:
            if self._known_objective_index >= len(study.directions):
                raise ValueError(
                    f"known_objective_index: expected less than the {len(study.directions)} "
                    f"objectives of the study, got {self._known_objective_index}"
                )
            cache.known = KnownObjective(
                self._known_objective,
                cache.history.space,
                objective=self._known_objective_index,
                sign=sign_of(study.directions[self._known_objective_index]),
                defaults=self._defaults,
            )
        return cache.known

    def _constraint(self, cache: _Cache) -> KnownConstraint | None:
        if self._known_constraint is None:
            return None
        if cache.constraint is None:
            space = cache.history.space
            cache.constraint = KnownConstraint(
                KnownFunction(self._known_constraint, space, defaults=self._defaults),
                space,
                slack=self._known_constraint_slack,
                name=self._known_constraint_name,
            )
        return cache.constraint

    @property
    def _defaults(self) -> dict[str, Any]:
        """Parameters with a single value, which are not part of the grid."""
        singles = {n: d for n, d in (self._search_space or {}).items() if d.single()}
        return {name: single_value(d) for name, d in singles.items()}

    def _record_prediction(self, study: Study, trial: FrozenTrial, choice: Choice) -> None:
        if choice.prediction:
            study._storage.set_trial_user_attr(trial._trial_id, PREDICTED_KEY, choice.prediction)


class _Cache:
    """State of one study on one grid that a worker keeps; all of it can be recomputed."""

    def __init__(self, space: FiniteSpace) -> None:
        self.history = History(space)
        self.rankings: dict[tuple[Any, ...], Ranking] = {}
        self.transfer: Transfer | None = None
        self.has_read_source = False
        self.known: KnownObjective | None = None
        self.constraint: KnownConstraint | None = None


def _fresh_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
