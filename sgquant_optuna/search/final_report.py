"""The end of a search: the best trials again with fresh trainings, and the test nodes opened once.

The best of many trials is partly luck, so its own value flatters it. A fixed sequence of trials,
from the smallest up, is measured again from seeds that the search never used, retrained if the
caller can, until the bound of the drop is within the limit; with a budget of bytes, the best trial
is, and is taken. Only then are test nodes looked at, with the full-precision model paired by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import optuna
from torch import Tensor, nn

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths
from sgquant_optuna.search.drop_interval import OpenedTest
from sgquant_optuna.search.fresh_trainings import FreshMeasurement, FreshTrainings
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.split_reference import splits_fingerprint
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.final_result import Baseline, FinalResult
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.selection import Ranked, rank
from sgquant_optuna.study.trial_result import TrialResult, is_feasible, learned_slope

_LEAST_TRAININGS = 3  # that may refuse a trial
_MOST_REPEATS = 2


def final_report(
    study: optuna.Study,
    objective: QuantizationObjective,
    data: Graph,
    *,
    seeds: int = 5,
    top: int = 6,
    retrain: Callable[..., nn.Module] | None = None,
    baselines: Mapping[str, BitWidths] | None = None,
) -> FinalResult:
    """Choose a trial with fresh trainings, open the test nodes, and store both in the study.

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
            Fresh trainings of the chosen trial, at least 2, and one for each split that was
            searched on. Three may refuse a trial; where the number does not decide, up to twice
            as many are made.
        top:
            Largest number of trials that are measured again.
        retrain:
            Function that trains the full-precision model anew from a seed. Without it, fresh seeds
            change the finetuning alone, and the luck of the one trained model remains. With
            ``split="all"`` it is called with the number of the split, too.
        baselines:
            Assignments to compare with, by name, on the trainings of the chosen trial and its test
            nodes: uniform widths, for instance. Their widths are among those that the objective
            was calibrated for. A report that is stored already keeps those that it has.

    Raises:
        GraphError:
            If ``data`` is not the objective's graph, or has no test nodes.
        StudyNotFoundError:
            If no trial is finished.
        ValueError:
            If ``seeds`` or ``top`` is too small, or a baseline has other sites than the study.

    Reference:
        Angelopoulos et al. (2021), "Learn then Test", for the fixed sequence.
    """
    if seeds < 2 or top < 1:
        raise ValueError(f"final report: expected seeds >= 2 and top >= 1, got {seeds}, {top}")
    config, limit = objective.config, StudyRecord.of(study).limit
    baselines = _checked(baselines or {}, objective)
    rows = trial_rows(study, TrialResult)
    ranked = rank(study, rows, limit)
    known = FinalResult.load(study)
    if known is not None and known.knows(ranked[0].number):
        return known

    graphs = _graphs_with_test(data, objective)
    seeds = max(seeds, len(graphs))
    slope = learned_slope(row.result for row in rows)
    trainings = FreshTrainings(objective, retrain)
    measured: dict[int, FreshMeasurement] = {}
    for trial in _sequence(ranked, limit, top):
        fresh = _measure_until_decided(trainings, trial, slope, limit, config.confidence, seeds)
        measured[trial.number] = fresh
        if limit.budget_bytes is not None:
            break
        if is_feasible(fresh.bound(slope, config.confidence), limit.largest_drop):
            break
    bounds = {number: fresh.bound(slope, config.confidence) for number, fresh in measured.items()}
    number = min(bounds, key=lambda number: bounds[number])
    fresh = measured[number]
    chosen = next(trial.result for trial in ranked if trial.number == number)
    full, quantized = (
        trainings.outputs(bits, fresh.trainings)
        for bits in (objective.full_precision, chosen.bit_widths)
    )
    metric = objective.task.metric
    tests = [graphs[trainings.split(at)] for at in range(fresh.trainings)]
    opened = OpenedTest(objective.task, tests, full, quantized)
    result = FinalResult(
        trial=number,
        holds=limit.is_feasible(replace(chosen, drop_bound=bounds[number])),
        seeds=fresh.trainings,
        retrained=retrain is not None,
        validation_drop=fmean(fresh.evidence.measured),
        flips=fresh.flips,
        estimated_drop=slope.estimate(fresh.evidence.expected_drop),
        drop_bound=bounds[number],
        full_precision_test=opened.full_precision,
        quantized_test=opened.quantized,
        test_drop_interval=opened.drop_interval(),
        higher_is_better=metric.higher_is_better,
        others=tuple(other for other in measured if other != number),
        times_opened=1 if known is None else known.times_opened + 1,
        baselines={
            name: _baseline(objective, trainings, fresh.trainings, bits, tests)
            for name, bits in baselines.items()
        },
    )
    result.save(study)
    return result


def _checked(
    baselines: Mapping[str, BitWidths], objective: QuantizationObjective
) -> Mapping[str, BitWidths]:
    """Refuse a baseline that cannot be measured before anything is trained."""
    sites = objective.full_precision.keys()
    widths = {FULL_PRECISION, *objective.search_space.widths}
    for name, bits in baselines.items():
        other = {str(site) for site in bits.keys() ^ sites}
        if other:
            raise ValueError(
                f"baseline {name!r}: expected the sites of the study, differs in "
                f"{', '.join(sorted(other)[:3])}"
            )
        if not widths.issuperset(bits.values()):
            raise ValueError(
                f"baseline {name!r}: expected widths of {sorted(widths)}, which the objective is "
                f"calibrated for, got {sorted(set(bits.values()) - widths)}"
            )
    return baselines


def _baseline(
    objective: QuantizationObjective,
    trainings: FreshTrainings,
    count: int,
    bits: BitWidths,
    tests: Sequence[Graph],
) -> Baseline:
    """Measure an assignment on the trainings and test nodes of the chosen trial."""
    memory = honest_memory(objective.layout, bits)
    full, quantized = (trainings.outputs(one, count) for one in (objective.full_precision, bits))
    opened = OpenedTest(objective.task, tests, full, quantized)
    drops = map(objective.task.metric.drop, opened.full_precision, opened.quantized)
    return Baseline(
        memory_bytes=memory.memory_bytes,
        average_bits=memory.average_bits,
        flips=trainings.measure(bits, count).flips,
        test=opened.quantized,
        test_drop=fmean(drops),
        test_drop_interval=opened.drop_interval(),
    )


def _sequence(
    ranked: Sequence[Ranked[TrialResult]], limit: Limit, top: int
) -> list[Ranked[TrialResult]]:
    """Return the trials to measure again, from the smallest up; the nearest if none is feasible.

    A trial that is neither smaller nor safer than another is left out, and of many, those at equal
    distances remain, with the smallest and the safest: where the smallest was luck, its neighbours
    probably were lucky too. With a budget it is the best alone: bytes need no training.
    """
    if limit.budget_bytes is not None:
        return list(ranked[:1])
    feasible = [trial for trial in ranked if limit.is_feasible(trial.result)]
    if not feasible:
        return list(ranked[:top])
    front = feasible[:1]
    for trial in feasible[1:]:
        if trial.result.drop_bound < front[-1].result.drop_bound:
            front.append(trial)
    if top == 1:
        return front[:1]
    last = len(front) - 1
    places = sorted({round(step * last / (top - 1)) for step in range(top)})
    return [front[place] for place in places]


def _measure_until_decided(
    trainings: FreshTrainings,
    trial: Ranked[TrialResult],
    slope: DropSlope,
    limit: Limit,
    confidence: float,
    seeds: int,
) -> FreshMeasurement:
    """Add trainings until they tell on which side of the limit the bound is."""
    bits, count = trial.result.bit_widths, min(_LEAST_TRAININGS, seeds)
    if limit.budget_bytes is not None:
        return trainings.measure(bits, seeds)
    while True:
        fresh = trainings.measure(bits, count)
        low, high = (fresh.bound(slope, confidence, sign=sign) for sign in (-1, 1))
        is_safe = count >= seeds and is_feasible(high, limit.largest_drop)
        if not is_feasible(low, limit.largest_drop) or is_safe or count >= _MOST_REPEATS * seeds:
            return fresh
        count += 1


def _graphs_with_test(data: Graph, objective: QuantizationObjective) -> list[Graph]:
    """Return the graph with its test items, once for each split."""
    task, graphs = objective.task, objective.checked_graphs(data)
    now = splits_fingerprint([task.without_test(one) for one in graphs], task)
    if now != objective.fingerprint["graph"]:
        raise GraphError("expected the graph that the study was measured on, got another")
    for graph in graphs:
        mask = task.part(graph).get("test_mask")
        if not isinstance(mask, Tensor) or not bool(mask.any()):
            raise GraphError("column test_mask: expected at least one test node, got none")
    return graphs
