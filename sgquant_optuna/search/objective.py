"""One trial: quantize a copy of the trained model as the trial says, finetune it, score it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary

from optuna.exceptions import TrialPruned
from optuna.pruners import NopPruner
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import Trial, TrialState
from torch import nn

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets, quantile_degree_edges
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.graph.fingerprint import graph_fingerprint, model_fingerprint, weights_sketch
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training import NODE_CLASSIFICATION, TrainingResult
from sgquant_optuna.packed.dry_run import try_export
from sgquant_optuna.packed.export import Source
from sgquant_optuna.quantization.memory import (
    FeatureLayout,
    exact_inputs,
    honest_memory,
)
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths
from sgquant_optuna.search.measurement import Measurement, Trainings
from sgquant_optuna.search.reference import Reference, reference_of
from sgquant_optuna.search.trial_log import log_trial
from sgquant_optuna.storage import write_together
from sgquant_optuna.storage.attributes import CONSTRAINTS_ATTR, WORKER_ATTR
from sgquant_optuna.storage.processes import process_name
from sgquant_optuna.study.byte_sizes import exact_megabytes
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.plan import ObjectiveConfig
from sgquant_optuna.study.reachable_sizes import ReachableSizes
from sgquant_optuna.study.record import Fingerprint, StudyRecord
from sgquant_optuna.study.rows import row_of
from sgquant_optuna.study.search_space import BitWidthSearchSpace, parse_granularity
from sgquant_optuna.study.selection import best_feasible
from sgquant_optuna.study.trial_result import (
    TrialResult,
    TrialScore,
    learned_slope,
    with_learned_bounds,
)

_WORST_DROP = 100.0  # percentage points


class QuantizationObjective:
    """Measures what a choice of bit widths saves and what it costs in accuracy.

    Give it to ``study.optimize``, or call it with an asked trial. It sees the training and
    validation labels only: test mask and test labels are dropped when it is made. The predictions
    that change on all nodes outside training, which need no label, tell most of the drop; the
    labels scale it (:mod:`sgquant_optuna.study.drop_slope`).

    In mode ``"constrained"`` the value is the memory in bytes, to be minimised. A trial whose drop
    may exceed ``max_drop`` with the given confidence records that as a constraint and is penalised
    to ``full_precision_bytes * (1 + violation)``, so that no infeasible trial ever looks best, not
    even where constraints are ignored. In mode ``"pareto"`` the values are memory in bytes and
    expected drop in percentage points, both minimised. In mode ``"budget"`` the value is the
    expected drop, to be minimised; a trial that takes more than ``budget_bytes`` records that as a
    constraint, as a share of the budget, and is penalised to ``100 * (1 + violation)``.

    The trainings of a trial are Optuna's steps, so pruners work; they stop as soon as the trial is
    decided.

    The export of a packed model is tried once when it is made: an :class:`ExportWarning` says what
    to change.

    Args:
        model:
            Trained full-precision model, or several of one architecture that were trained from
            different seeds: each trial is then measured on all of them, so that the search cannot
            adapt to the luck of one. They are copied and stay as they are.
        data:
            Graph with ``x``, ``edge_index``, ``y``, ``train_mask`` and ``val_mask``.
        config:
            Options of the search; the defaults of :class:`ObjectiveConfig` if ``None``.
        forward:
            Function that calls the model with the graph, where the parameters of the model are
            not named as the graph's columns.
        task:
            Items, loss and metric of the model; node classification by default. Where a page says
            accuracy in percent and points, the metric and its unit are meant.
        options:
            Options of :class:`ObjectiveConfig` by name, in the place of those of ``config``.

    Raises:
        GraphError:
            If the graph lacks a column, or a mask is empty or overlaps another.
        ModelError:
            If the model cannot be quantized.
        QuantizerBypassedError:
            If the scores do not depend on a site, so that its width would look free.
        TypeError:
            If an option has no such name.
        ValueError:
            If an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        data: Graph,
        config: ObjectiveConfig | None = None,
        *,
        forward: Forward = forward,
        task: Task = NODE_CLASSIFICATION,
        **options: Any,
    ) -> None:
        self.config = config = replace(config or ObjectiveConfig(), **options)
        task.check(data)
        models = [model] if isinstance(model, nn.Module) else list(model)
        self.forward, self.task = task.answering(forward), task
        self._metric = MetricWords(**task.describe_metric())

        data = task.without_test(data)
        graph_print = graph_fingerprint(data, task.columns, task.node_type)
        self.degree_edges = _degree_edges(data, config)
        if self.degree_edges:
            data = AddDegreeBuckets(self.degree_edges)(data)
        self.graph = FixedGraph(data)

        self.models = [self.calibrated(one) for one in models]
        self.models[0].check_effects()
        self.layout = self.models[0].layout
        self._trainings = Trainings(self.models, config, task)
        exact = _exact_inputs(self.layout, config)
        self.search_space = BitWidthSearchSpace(
            self.layout.sizes,
            granularity=config.granularity,
            candidates=config.candidates,
            frozen={**exact, **config.frozen},  # what the user says comes last and counts
            encoding=config.encoding,
        )
        if config.budget_bytes is not None:
            self._check_budget(config.budget_bytes)
        self.fingerprint: Fingerprint = {
            "graph": graph_print,
            "model": model_fingerprint(models[0]),
            "weights": weights_sketch(nn.ModuleList(models)),
            "space": {
                **self.search_space.to_dict(),
                "degree_edges": list(self.degree_edges),
            },
            "quantizer": config.quantizer.to_dict(),
            "finetuning": config.finetuning.to_dict(),
            "protocol": {
                "mode": config.mode,
                **config.limit.to_dict(),
                "confidence": config.confidence,
                "models": len(models),
                "repeats": config.repeats,
                "first_look": config.first_look,
                "seed": config.seed,
                "task": task.fingerprint,
            },
        }
        self._checked_studies = _CheckedStudies()
        try_export(self.graph, data, partial(self._smallest, models[0]))

    def calibrated(self, model: nn.Module, graph: FixedGraph | None = None) -> CalibratedModel:
        """Return a model of the same architecture, ready to be finetuned.

        Args:
            model:
                Trained model.
            graph:
                Graph to calibrate it on; that of the objective by default.
        """
        return CalibratedModel(
            model,
            graph or self.graph,
            candidates=sorted({*self.config.candidates, *self.config.frozen.values()}),
            quantizer=self.config.quantizer,
            num_buckets=len(self.degree_edges) + 1,
            layers=self.config.layers,
            attention=self.config.attention,
            forward=self.forward,
            task=self.task,
        )

    @property
    def directions(self) -> list[StudyDirection]:
        """Directions of the values, for ``optuna.create_study``."""
        return [StudyDirection.MINIMIZE] * len(self.metric_names)

    @property
    def metric_names(self) -> list[str]:
        """Names of the values, for ``study.set_metric_names``."""
        return self.config.metric_names

    @cached_property
    def full_precision_accuracy(self) -> float:
        """Validation accuracy at 32 bits after the same finetuning, in percent."""
        return self.reference.accuracy

    @cached_property
    def reference(self) -> Reference:
        """Predictions of the trainings of a trial at 32 bits, after the same finetuning."""
        found = list(self._trainings.scores(self.full_precision))
        return reference_of(self.task, found, self.graph.data)

    @property
    def full_precision(self) -> BitWidths:
        """The assignment that quantizes nothing."""
        return BitWidths(dict.fromkeys(self.layout.sizes, FULL_PRECISION))

    def _smallest(self, model: nn.Module, graph: FixedGraph) -> Source:
        """Return the first model with the fewest bits, for its own graph or another."""
        made = self.models[0] if graph is self.graph else self.calibrated(model, graph)
        bits = BitWidths(dict.fromkeys(made.layout.sizes, min(self.config.candidates)))
        return Source(made.quantized(bits), graph, made.layout, self.forward)

    def memory_bytes(self, params: Mapping[str, Any]) -> float:
        """Return the honest bytes of a choice of parameters, without any training."""
        bits = self.search_space.from_params(params)
        return honest_memory(self.layout, bits).memory_bytes

    def violations(self, attrs: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...] | None]:
        """Return by how much the drop of each trial may exceed the limit, learned from all.

        Args:
            attrs:
                User attributes of the trials of a study.

        Returns:
            Points above ``max_drop`` for each trial; ``None`` if it is not of our objective.
        """
        results = [TrialScore.of(one) for one in attrs]
        bounded = with_learned_bounds(results, self.config.confidence)
        limit = self.config.limit
        return [None if one is None else (limit.violation(one),) for one in bounded]

    def budget_excess(self, params: Mapping[str, Any]) -> float:
        """Return by what share of the budget a choice of parameters is above it."""
        assert self.config.budget_bytes is not None
        return self.memory_bytes(params) / self.config.budget_bytes - 1

    def _check_budget(self, budget_bytes: float) -> None:
        """Refuse a budget that no assignment meets, or that all do."""
        sizes = ReachableSizes(self.layout, self.search_space)
        given = f"got {exact_megabytes(budget_bytes)}"
        if budget_bytes < sizes.smallest:
            raise ValueError(
                f"budget_bytes: expected at least the smallest assignment, "
                f"{exact_megabytes(sizes.smallest)}, {given}"
            )
        if budget_bytes >= honest_memory(self.layout, self.full_precision).memory_bytes:
            raise ValueError(
                f"budget_bytes: expected less than full precision takes, {given}: nothing need be "
                f"quantized"
            )
        if budget_bytes >= sizes.largest:
            raise ValueError(
                f"budget_bytes: expected less than the largest assignment, "
                f"{exact_megabytes(sizes.largest)}, {given}: add wider candidates, or give less"
            )

    def measure(self, bits: BitWidths) -> float:
        """Finetune with these widths; return the mean validation accuracy in percent."""
        return fmean(result.accuracy for _, result in self.finetuned(bits))

    def finetuned(self, bits: BitWidths) -> Iterator[tuple[nn.Module, TrainingResult]]:
        """Yield the models that a trial with these widths is measured on, one by one."""
        return self._trainings.finetuned(bits)

    def finetune(self, bits: BitWidths, *, seed: int) -> tuple[nn.Module, TrainingResult]:
        """Return a finetuned copy of the (first) model, and how its training went."""
        return self.models[0].finetune(bits, self.config.finetuning, seed=seed)

    def record(self) -> StudyRecord:
        """Return what a study of this objective says of itself."""
        return StudyRecord(
            fingerprint=self.fingerprint,
            layout=self.layout,
            degree_edges=self.degree_edges,
            full_precision_accuracy=self.full_precision_accuracy,
            max_drop=self.config.max_drop,
            confidence=self.config.confidence,
            mode=self.config.mode,
            budget_bytes=self.config.budget_bytes,
            metric=self._metric,
        )

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Measure one trial.

        Returns:
            The memory in bytes or the expected drop (penalised if infeasible), or both.

        Raises:
            StudyMismatchError:
                If the study was measured on another graph, model, space or protocol.
            TrialPruned:
                If the pruner of the study says so.
        """
        if trial.study not in self._checked_studies:
            self.sign(trial.study)
        started = time.perf_counter()
        with write_together():
            bits = self.search_space.suggest(trial)
            trial.set_user_attr(WORKER_ATTR, process_name())  # a retried trial has another's
        finished = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [row_of(other, TrialScore).result for other in finished]
        measurement, is_pruned = self._measure(trial, bits, others)
        result = measurement.result(self.layout, bits, time.perf_counter() - started)
        slope = learned_slope([*others, result])
        result = result.with_slope(slope, self.config.confidence)
        self._write(trial, result)
        log_trial(trial, result, others, self.config.limit, self._metric)
        if is_pruned:
            raise TrialPruned
        if self.config.mode == "pareto":
            return result.memory_bytes, result.expected_drop
        return self._value(result)

    def _measure(
        self, trial: Trial, bits: BitWidths, others: Sequence[TrialScore | None]
    ) -> tuple[Measurement, bool]:
        """Measure until the trial is decided; tell whether a pruner ended it."""
        config, measurement = self.config, None
        slope, best = learned_slope(others), best_feasible(others, config.limit)
        memory = honest_memory(self.layout, bits).memory_bytes
        for step, measurement in enumerate(self._trainings.measure(bits, self.reference)):
            if config.mode == "pareto":
                continue  # Optuna prunes with one objective only, and a front has no limit
            if self._is_pruned(trial, step, bits, measurement, slope):
                return measurement, True
            if measurement.is_decided(slope, config, len(self._trainings), best, memory):
                break
        assert measurement is not None
        return measurement, False

    def _is_pruned(
        self, trial: Trial, step: int, bits: BitWidths, measurement: Measurement, slope: DropSlope
    ) -> bool:
        """Report the value that the trial would have now, and ask the pruner."""
        if isinstance(trial.study.pruner, NopPruner):
            return False
        result = measurement.result(self.layout, bits, 0.0)
        result = result.with_slope(slope, self.config.confidence)
        known = trial.storage.get_trial(trial._trial_id).intermediate_values
        if step not in known:  # a trial that was given back has reported
            trial.report(self._value(result), step)
        return trial.should_prune()

    def _value(self, result: TrialResult) -> float:
        """Return the only value of a trial, or a penalty beyond all feasible ones."""
        violation = self.config.limit.violation(result)
        if self.config.mode == "budget":
            return result.expected_drop if violation <= 0 else _WORST_DROP * (1 + violation)
        if violation <= 0:
            return result.memory_bytes
        full = honest_memory(self.layout, result.bit_widths).full_precision_bytes
        return full * (1 + violation)

    def _write(self, trial: Trial, result: TrialResult) -> None:
        with write_together():
            for name, value in result.to_attrs().items():
                trial.set_user_attr(name, value)
        if self.config.mode != "pareto":
            # The list form is the one that both Optuna and its dashboard read.
            violation = self.config.limit.violation(result)
            trial.storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS_ATTR, [violation])

    def sign(self, study: Study) -> None:
        """Check that a study is of this objective, or mark a new one as such.

        Raises:
            StudyMismatchError:
                If it was measured on another graph, model, space or protocol.
        """
        known = StudyRecord.load(study)
        if known is None:
            self.record().save(study)
        else:
            known.check(study, self.fingerprint)
            # What is compared with must not differ between workers by rounding.
            self.__dict__["full_precision_accuracy"] = known.full_precision_accuracy
        self._checked_studies.add(study)


class _CheckedStudies:
    """Studies that were checked, told by storage and name: two storages may share a name."""

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[BaseStorage, set[str]] = WeakKeyDictionary()

    def add(self, study: Study) -> None:
        self._names.setdefault(study._storage, set()).add(study.study_name)

    def clear(self) -> None:
        self._names.clear()

    def __contains__(self, study: Study) -> bool:
        return study.study_name in self._names.get(study._storage, set())

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _CheckedStudies, ()  # another process checks again


def _degree_edges(data: Graph, config: ObjectiveConfig) -> tuple[int, ...]:
    if "bucket" not in parse_granularity(config.granularity) and config.quantizer.axis != "bucket":
        return ()
    if isinstance(config.degree_edges, int):
        return quantile_degree_edges(data, config.degree_edges)
    return check_degree_edges(config.degree_edges)


def _exact_inputs(layout: FeatureLayout, config: ObjectiveConfig) -> dict[str, int]:
    sites = exact_inputs(layout, config.candidates) if config.exact_inputs else {}
    if len(sites) == len(layout.sizes):
        return {}  # nothing would be left to search
    return {str(site): width for site, width in sites.items()}
