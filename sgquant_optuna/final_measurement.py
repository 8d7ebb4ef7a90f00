"""The end of a search: the best trials again with fresh seeds, and the test nodes opened once.

The best of many noisy trials is partly luck, so its own value flatters it. Trials are
measured again from seeds that the search never used, retrained if the caller tells how, to find
the smallest whose mean drop holds. Only then are test nodes looked
at, with the full-precision model paired by seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import optuna
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.bit_widths import BitWidths
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.final_result import FinalResult
from sgquant_optuna.fingerprint import graph_fingerprint
from sgquant_optuna.objective import QuantizationObjective, without_test_nodes
from sgquant_optuna.selection import feasible_trials

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
            What measured it.
        data:
            The graph with its ``test_mask`` and all labels.
        seeds:
            Fresh seeds, at least 2.
        top:
            How many trials are measured again at most.
        retrain:
            Trains the full-precision model anew from a seed. Without it, fresh seeds change the
            finetuning alone, and what the one trained model owes to luck stays in the figures.

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
    ranked = feasible_trials(study, objective.max_drop)
    known = FinalResult.load(study)
    if known is not None and ranked[0].number in (known.trial, *known.others):
        return known

    test_mask = _test_mask(data, objective)
    fresh = range(_FRESH_SEEDS, _FRESH_SEEDS + seeds)
    measures = [
        _Measure(objective if retrain is None else objective.for_model(retrain(seed)), seed, data)
        for seed in fresh
    ]
    full_precision = BitWidths(dict.fromkeys(objective.layout.sizes, 32))
    references = [measure(full_precision) for measure in measures]
    tried: dict[int, tuple[float, list[tuple[float, Tensor]]]] = {}

    def holds(rank: int) -> bool:
        bits = BitWidths.from_dict(ranked[rank].user_attrs["bit_widths"])
        runs = [measure(bits) for measure in measures]
        drop = fmean(ref[0] - run[0] for ref, run in zip(references, runs, strict=True))
        tried[rank] = (drop, runs)
        return drop <= objective.max_drop

    chosen = _smallest_that_holds(len(ranked), holds, tries=top)
    rank = min(tried, key=lambda rank: tried[rank][0]) if chosen is None else chosen
    drop, runs = tried[rank]
    result = FinalResult(
        trial=ranked[rank].number,
        holds=chosen is not None,
        seeds=seeds,
        retrained=retrain is not None,
        validation_drop=drop,
        full_precision_test=tuple(_share(correct, test_mask) for _, correct in references),
        quantized_test=tuple(_share(correct, test_mask) for _, correct in runs),
        others=tuple(ranked[other].number for other in tried if other != rank),
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
        rank = (fails + end) // 2 if end - fails > 1 else None
        if rank is None:
            break
        if holds(rank):
            end, found = rank, rank
        else:
            fails = rank
    return found


@dataclass(frozen=True)
class _Measure:
    """One fresh seed: what any widths reach with it."""

    objective: QuantizationObjective
    seed: int
    data: Data

    def __call__(self, bits: BitWidths) -> tuple[float, Tensor]:
        """Return validation accuracy, and for each node whether it is right, ``[N]`` bool."""
        model, result = self.objective.finetune(bits, seed=self.seed)
        right = self.objective.scores(model).argmax(dim=1) == self.data.y
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
