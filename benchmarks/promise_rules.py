"""Rules that promise a limit of the drop, judged by labels and trainings that they do not see.

A draw takes some nodes outside training as labelled ones and some trainings. A rule bounds the
drop of each configuration by them, and the smallest configuration within the limit is chosen. Its
true drop is that of the other trainings on the other nodes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

import numpy as np
import numpy.typing as npt
import torch
from prediction_table import PredictionTable
from torch_geometric.data import Data

from sgquant_optuna.search.prediction_changes import ReferencePredictions
from sgquant_optuna.study import drop_slope
from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.drop_slope import DropSlope

Floats = npt.NDArray[np.float64]
Trials = list[tuple[float, DropEvidence]]
"""Flips in percent and evidence of each configuration, as the trials of a study have them."""

CONFIDENCE = 0.9  # at which rules are compared
_NO_PRIOR = 1e6  # error of a prior that says nothing


@dataclass(frozen=True)
class Draw:
    """What the rules know in one draw, and what they do not.

    Args:
        trials:
            Flips and evidence of each configuration.
        true_drop:
            Drop of each configuration by the other trainings on the other nodes, in points.
        seen_drop:
            Drop by the trainings of the draw on the other nodes, which no rule can know.
    """

    trials: Trials
    true_drop: Floats
    seen_drop: Floats


Rule = Callable[[Draw], Floats]
"""Bounds the drop of each configuration, in percentage points."""


def draw(
    table: PredictionTable,
    labels: npt.NDArray[np.int64],
    outside: npt.NDArray[np.bool_],
    generator: np.random.Generator,
    *,
    num_labels: int,
    num_trainings: int,
) -> Draw:
    """Draw labelled nodes and trainings.

    Args:
        table:
            Predictions.
        labels:
            Label of each node, ``[N]``.
        outside:
            Mask of the nodes outside training, ``[N]``.
        generator:
            Source of random numbers.
        num_labels:
            Number of labelled nodes.
        num_trainings:
            Number of trainings that the rules see; the others tell the truth.
    """
    labelled = np.zeros(len(labels), dtype=bool)
    labelled[generator.choice(np.flatnonzero(outside), num_labels, replace=False)] = True
    order = generator.permutation(table.trainings)
    seen, unseen = order[:num_trainings], order[num_trainings:]
    others = outside & ~labelled
    return Draw(
        trials_of(table, labels, outside, labelled, seen),
        true_drop=_drops(table, labels, others, unseen),
        seen_drop=_drops(table, labels, others, seen),
    )


def trials_of(
    table: PredictionTable,
    labels: npt.NDArray[np.int64],
    outside: npt.NDArray[np.bool_],
    labelled: npt.NDArray[np.bool_],
    trainings: npt.NDArray[np.int64],
) -> Trials:
    """Return what a study knows of each configuration, by the code of the product."""
    nodes = np.flatnonzero(outside)
    scores = [torch.from_numpy(table.scores[one][nodes]) for one in trainings]
    y = torch.from_numpy(labels[nodes])
    graph = Data(
        y=y, train_mask=torch.zeros_like(y).bool(), val_mask=torch.from_numpy(labelled[nodes])
    )
    reference = ReferencePredictions(scores, [0.0] * len(scores), graph.y, graph)
    found = []
    for classes in table.classes[:, trainings][:, :, nodes]:
        predicted = [torch.from_numpy(one.astype(np.int64)) for one in classes]
        found.append((reference.flips(predicted), reference.evidence(predicted)))
    return found


def _drops(
    table: PredictionTable,
    labels: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.bool_],
    trainings: npt.NDArray[np.int64],
) -> Floats:
    full = (table.scores[trainings].argmax(axis=2) == labels)[:, nodes].mean()
    quantized = (table.classes[:, trainings] == labels)[:, :, nodes].mean(axis=(1, 2))
    drops: Floats = 100.0 * (full - quantized)
    return drops


def choose(bounds: Floats, memory: Floats, limit: float) -> int:
    """Return the smallest configuration within the limit; the largest of all if none is."""
    within = bounds <= limit
    return int(np.where(within, memory, np.inf).argmin() if within.any() else memory.argmax())


def judge(rule: Rule, one: Draw, memory: Floats, limit: float) -> tuple[bool, float]:
    """Tell whether the choice of a rule breaks its promise, and how large it is.

    Returns:
        Whether the true drop is above the limit, and the bytes divided by those of the smallest
        configuration whose true drop is not.
    """
    chosen = choose(rule(one), memory, limit)
    best = choose(one.true_drop, memory, limit)
    return bool(one.true_drop[chosen] > limit), float(memory[chosen] / memory[best])


def validation_drop(one: Draw) -> Floats:
    """Bound by the mean drop on the labelled nodes alone."""
    return np.array([fmean(evidence.measured) for _, evidence in one.trials])


def validation_bound(one: Draw) -> Floats:
    """Bound by that mean and its standard error over the nodes."""
    z = NormalDist().inv_cdf(0.95)
    errors = [
        100.0 * evidence.lost_by_group().std(ddof=1) * math.sqrt(evidence.groups) / evidence.nodes
        for _, evidence in one.trials
    ]
    return validation_drop(one) + z * np.array(errors)


def expected_drop(one: Draw) -> Floats:
    """Take the expected drop f as it is: no label serves but for the temperature."""
    return np.array([evidence.expected_drop for _, evidence in one.trials])


def flips_bound(one: Draw) -> Floats:
    """Bound by a slope from flips to the drop, learned as that from expected drops."""
    trials = [
        (flips, replace(evidence, expected=(flips,) * evidence.trainings))
        for flips, evidence in one.trials
    ]
    with _prior_error(_NO_PRIOR):
        return _bounds(trials, CONFIDENCE, luck=False)


def product(
    confidence: float = CONFIDENCE,
    *,
    prior: float = drop_slope._PRIOR_ERROR,
    luck: bool = True,
    doubt: float = 0.0,
) -> Rule:
    """Return the rule of the product, or a variant of it.

    Args:
        confidence:
            Probability of the bounds.
        prior:
            Error of the prior of the slope.
        luck:
            Whether the luck of the nodes is added.
        doubt:
            Deviation of the probabilities themselves, for each flip.
    """

    def rule(one: Draw) -> Floats:
        trials = [
            (flips, replace(evidence, deviation=math.hypot(evidence.deviation, doubt * flips)))
            for flips, evidence in one.trials
        ]
        with _prior_error(prior):
            return _bounds(trials, confidence, luck=luck)

    return rule


def true_slope(one: Draw) -> Floats:
    """Bound by the rule of the product, but with the slope that the truth has."""
    expected = expected_drop(one)
    near = np.array([flips for flips, _ in one.trials]) <= drop_slope._NEAR
    product, square = (expected * one.true_drop)[near].sum(), (expected**2)[near].sum()
    slope = DropSlope(float(product / square), 0.0) if square else DropSlope()
    return _bounds(one.trials, CONFIDENCE, luck=True, slope=slope)


def _bounds(
    trials: Trials, confidence: float, *, luck: bool, slope: DropSlope | None = None
) -> Floats:
    slope = slope or DropSlope.learned(trials)
    return np.array(
        [
            slope.bound(evidence.expected_drop, evidence.deviation if luck else 0.0, confidence)
            for _, evidence in trials
        ]
    )


@contextlib.contextmanager
def _prior_error(error: float) -> Iterator[None]:
    usual, drop_slope._PRIOR_ERROR = drop_slope._PRIOR_ERROR, error
    try:
        yield
    finally:
        drop_slope._PRIOR_ERROR = usual


RULES: dict[str, Rule] = {
    "validation drop": validation_drop,
    "validation drop + 1.645 standard errors": validation_bound,
    "flips x (slope + z errors), 90 %": flips_bound,
    "expected drop f alone": expected_drop,
    "f x (slope + z errors), 90 %": product(prior=_NO_PRIOR, luck=False),
    "ours without prior, 90 %": product(prior=_NO_PRIOR),
    "ours with a prior of 1 ± 1, 90 %": product(prior=1.0),
    "ours with a doubt of 0.04 a flip, 90 %": product(doubt=0.04),
    "ours without luck of the nodes, 90 %": product(luck=False),
    "ours, 80 %": product(0.8),
    "ours, 90 %": product(0.9),
    "**ours, 95 %**": product(0.95),
    "ours with the true slope (unknowable), 90 %": true_slope,
    "drop on all other nodes (unknowable)": lambda one: one.seen_drop,
}


def slope_by_nodes(
    table: PredictionTable,
    labels: npt.NDArray[np.int64],
    outside: npt.NDArray[np.bool_],
    labelled: npt.NDArray[np.bool_],
) -> float:
    """Return the slope that all trainings and some labelled nodes tell, without a prior."""
    trials = trials_of(table, labels, outside, labelled, np.arange(table.trainings))
    with _prior_error(_NO_PRIOR):
        return DropSlope.learned(trials).slope
