"""The end of a search: the best trials again with fresh seeds, and the test nodes opened once.

The best of many noisy trials is partly luck, so its own value flatters it. Trials are
measured again from seeds that the search never used, retrained if the caller can, to find the
smallest whose mean drop holds; with a budget of bytes, the best trial is, and is taken. Only then
are test nodes looked at, with the full-precision model paired by seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import optuna
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.fingerprint import graph_fingerprint
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective, without_test_nodes
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.selection import rank
from sgquant_optuna.study.trial_result import TrialResult, is_feasible

_FRESH_SEEDS = 1000  # far from the seeds of any search


def final_report(
    study: optuna.Study,
    objective: QuantizationObjective,
    data: Data,
    *,
    seeds: int = 5,
    top: int = 6,
    retrain: Callable[[int], nn.Module] | None = None,
) -> FinalResult:
    """Choose a trial with fresh seeds, open the test nodes, and store both in the study.

    A study that has its report already gives it back without looking at the test nodes again,
    unless another trial has become the best since.

    Args:
        study:
            A study of ``objective`` with finished trials.
        objective:
            Objective that measured the study.
        data:
            The graph with its ``test_mask`` and all labels.
        seeds:
            Fresh seeds, at least 2.
        top:
            Largest number of trials that are measured again.
        retrain:
            Function that trains the full-precision model anew from a seed. Without it, fresh seeds
            change the finetuning alone, and the luck of the one trained model remains.

    Raises:
        GraphError:
            If ``data`` is not the objective's graph, or has no test nodes.
        StudyNotFoundError:
            If no trial is finished.
        ValueError:
            If ``seeds`` or ``top`` is too small.
    """
    if seeds < 2 or top < 1:
        raise ValueError(f"final report: expected seeds >= 2 and top >= 1, got {seeds}, {top}")
    config, limit = objective.config, objective.config.limit
    ranked = rank(study, trial_rows(study, TrialResult), limit)
    # If none is feasible, the nearest come first.
    ranked = [trial for trial in ranked if limit.is_feasible(trial.result)] or ranked
    known = FinalResult.load(study)
    if known is not None and known.knows(ranked[0].number):
        return known

    test_mask = _test_mask(data, objective)
    fresh = range(_FRESH_SEEDS, _FRESH_SEEDS + seeds)
    measures = [
        _Measure(
            objective.models[0] if retrain is None else objective.calibrated(retrain(seed)),
            objective.config.finetuning,
            seed,
            data,
        )
        for seed in fresh
    ]
    references = [measure(objective.full_precision) for measure in measures]
    tried: dict[int, tuple[float, list[tuple[float, Tensor]]]] = {}

    def holds(place: int) -> bool:
        runs = [measure(ranked[place].result.bit_widths) for measure in measures]
        drop = fmean(ref[0] - run[0] for ref, run in zip(references, runs, strict=True))
        tried[place] = (drop, runs)
        if config.mode == "budget":  # bytes need no training: the best is measured and taken
            return limit.is_feasible(ranked[place].result)
        return is_feasible(drop, config.max_drop)

    chosen = _smallest_that_holds(len(ranked), holds, tries=top)
    place = min(tried, key=lambda place: tried[place][0]) if chosen is None else chosen
    drop, runs = tried[place]
    result = FinalResult(
        trial=ranked[place].number,
        holds=chosen is not None,
        seeds=seeds,
        retrained=retrain is not None,
        validation_drop=drop,
        full_precision_test=tuple(_share(correct, test_mask) for _, correct in references),
        quantized_test=tuple(_share(correct, test_mask) for _, correct in runs),
        others=tuple(ranked[other].number for other in tried if other != place),
        times_opened=1 if known is None else known.times_opened + 1,
    )
    result.save(study)
    return result


def _smallest_that_holds(count: int, holds: Callable[[int], bool], *, tries: int) -> int | None:
    """Search ranks 0 to ``count - 1``, from the smallest trial to the largest, by halving.

    If the smallest was luck, its neighbours in memory probably were lucky too.
    """
    if holds(0):
        return 0
    fails, found, end = 0, None, count
    for _ in range(tries - 1):
        place = (fails + end) // 2 if end - fails > 1 else None
        if place is None:
            break
        if holds(place):
            end, found = place, place
        else:
            fails = place
    return found


@dataclass(frozen=True)
class _Measure:
    """One fresh seed: what any widths reach with it."""

    model: CalibratedModel
    finetuning: TrainingConfig
    seed: int
    data: Data

    def __call__(self, bits: BitWidths) -> tuple[float, Tensor]:
        """Return validation accuracy, and for each node whether it is right, ``[N]`` bool."""
        model, result = self.model.finetune(bits, self.finetuning, seed=self.seed)
        right = self.model.scores(model).argmax(dim=1) == self.data.y
        return result.accuracy, right


def _share(correct: Tensor, mask: Tensor) -> float:
    return 100.0 * float(correct[mask].double().mean())


def _test_mask(data: Data, objective: QuantizationObjective) -> Tensor:
    if graph_fingerprint(without_test_nodes(data)) != objective.fingerprint["graph"]:
        raise GraphError("expected the graph that the study was measured on, got another")
    mask = data.get("test_mask")
    if not isinstance(mask, Tensor) or not bool(mask.any()):
        raise GraphError("column test_mask: expected at least one test node, got none")
    return mask
