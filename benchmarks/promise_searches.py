"""Whole searches whose promise is checked on nodes and trainings that they do not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import optuna
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.training import fit
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.final_report import final_report
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.selection import rank
from sgquant_optuna.study.trial_result import TrialResult

_TRUE_SEEDS = 5000  # far from those of search and final report


@dataclass(frozen=True)
class Choice:
    """A trial that was taken in one search.

    Args:
        promised:
            Whether its drop was said to be within the limit.
        true_drop:
            Drop by the other trainings on the nodes outside training and validation, in points.
        memory_bytes:
            Honest bytes.
    """

    promised: bool
    true_drop: float
    memory_bytes: float


def search(
    plan: SearchPlan, graph: Data, *, seed: int, num_labels: int, true_trainings: int
) -> dict[str, Choice]:
    """Search with labels drawn anew, and check what three rules take of it.

    Args:
        plan:
            Settings of the search; the seed is replaced.
        graph:
            Graph with all labels.
        seed:
            Seed of models, sampler and labels.
        num_labels:
            Number of validation nodes, drawn from those outside training; the others tell the
            truth.
        true_trainings:
            Number of fresh trainings that tell the truth.

    Returns:
        Choice of the search, of its final report and of the drop on the validation nodes.
    """
    plan = replace(plan, seed=10_000 * seed)  # models, fresh and true trainings differ
    data = with_labels(graph, num_labels, seed)
    objective = QuantizationObjective(
        [_trained(plan, data, one) for one in plan.training_seeds], data, plan
    )
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), seed=plan.seed)
    study.optimize(objective, n_trials=plan.n_trials)
    limit = objective.limit
    ranked = [one.result for one in rank(study, trial_rows(study, TrialResult), limit)]
    final = final_report(
        study,
        objective,
        data,
        seeds=plan.final_seeds,
        retrain=lambda fresh: _trained(plan, data, plan.seed + fresh),
    )
    reported = TrialResult.of(study.trials[final.trial].user_attrs)
    assert reported is not None
    finetuned = [one for one in ranked if one.trainings] or ranked
    by_labels = min(
        finetuned, key=lambda one: (one.accuracy_drop > limit.largest_drop, one.memory_bytes)
    )
    truth = _Truth(plan, data, objective, true_trainings)
    return {
        "search": truth.of(ranked[0], limit.is_feasible(ranked[0])),
        "final report": truth.of(reported, final.holds),
        "validation drop": truth.of(by_labels, by_labels.accuracy_drop <= limit.largest_drop),
    }


class _Truth:
    """The drop by fresh trainings on the nodes that the search does not see."""

    def __init__(
        self, plan: SearchPlan, data: Data, objective: QuantizationObjective, trainings: int
    ) -> None:
        self._data, self._objective = data, objective
        seeds = range(plan.seed + _TRUE_SEEDS, plan.seed + _TRUE_SEEDS + trainings)
        self._models = [(objective.calibrated(_trained(plan, data, s)), s) for s in seeds]
        self._full = self._accuracy(objective.full_precision)

    def of(self, result: TrialResult, promised: bool) -> Choice:
        drop = self._full - self._accuracy(result.bit_widths)
        return Choice(promised, drop, result.memory_bytes)

    def _accuracy(self, bits: BitWidths) -> float:
        found = []
        for calibrated, seed in self._models:
            model, _ = calibrated.finetune(bits, self._objective.config.finetuning, seed=seed)
            right = calibrated.scores(model).argmax(dim=1) == self._data.y
            found.append(100.0 * float(right[self._data.test_mask].double().mean()))
        return fmean(found)


def _trained(plan: SearchPlan, data: Data, seed: int) -> nn.Module:
    assert plan.model is not None  # a model by name
    model = make_model(plan.model, data.num_features, int(data.y.max()) + 1, seed=seed)
    fit(model, data, plan.training, seed=seed)
    return model


def with_labels(graph: Data, num_labels: int, seed: int) -> Data:
    """Return a copy with other validation nodes; all others outside training are test nodes."""
    data = graph.clone()
    generator = torch.Generator().manual_seed(seed)
    outside = (~data.train_mask).nonzero().flatten()
    labelled = outside[torch.randperm(len(outside), generator=generator)[:num_labels]]
    mask: Tensor = torch.zeros_like(data.train_mask)
    mask[labelled] = True
    data.val_mask, data.test_mask = mask, ~(data.train_mask | mask)
    return data


def kept(choices: Sequence[Choice], max_drop: float) -> tuple[int, int]:
    """Return how many promises were made, and how many of them are kept."""
    promised = [one for one in choices if one.promised]
    return len(promised), sum(one.true_drop <= max_drop for one in promised)
