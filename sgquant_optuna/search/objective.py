"""One trial: quantize a copy of the trained model as the trial says, finetune it, score it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any

from optuna.exceptions import TrialPruned
from optuna.pruners import NopPruner
from optuna.study import Study, StudyDirection
from optuna.trial import Trial, TrialState
from torch import nn

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fingerprint import model_fingerprint, weights_sketch
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.splits import split_graphs, split_of
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training import NODE_CLASSIFICATION, TrainingResult
from sgquant_optuna.packed.dry_run import try_export
from sgquant_optuna.packed.export import Source
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths
from sgquant_optuna.search.checked_studies import CheckedStudies
from sgquant_optuna.search.config_on_graph import check_axis, degree_edges_of, exact_inputs_of
from sgquant_optuna.search.measurement import Measurement, Trainings
from sgquant_optuna.search.reference import Reference
from sgquant_optuna.search.split_reference import (
    models_on_graphs,
    reference_on,
    splits_fingerprint,
)
from sgquant_optuna.search.trial_log import log_trial
from sgquant_optuna.storage import write_together
from sgquant_optuna.storage.attributes import CONSTRAINTS_ATTR, WORKER_ATTR
from sgquant_optuna.storage.processes import process_name
from sgquant_optuna.study.byte_sizes import exact_megabytes
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.plan import ObjectiveConfig
from sgquant_optuna.study.reachable_sizes import ReachableSizes
from sgquant_optuna.study.record import Fingerprint, StudyRecord
from sgquant_optuna.study.rows import row_of
from sgquant_optuna.study.search_space import BitWidthSearchSpace
from sgquant_optuna.study.selection import best_feasible
from sgquant_optuna.study.trial_result import (
    TrialResult,
    TrialScore,
    learned_slope,
    with_learned_bounds,
)


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
    expected drop in the unit of the metric, both minimised. In mode ``"budget"`` the value is the
    expected drop, to be minimised; a trial that takes more than ``budget_bytes`` records that as a
    constraint, as a share of the budget, and is penalised to ``100 * (1 + violation)`` points, or
    with another metric to 100 times its full-precision value, times the same factor.

    The trainings of a trial are Optuna's steps, so pruners work; they stop as soon as the trial is
    decided.

    The export of a packed model is tried once when it is made: an :class:`ExportWarning` says what
    to change.

    Args:
        model:
            Trained full-precision model, or several of one architecture that were trained from
            different seeds: each trial is then measured on all of them, so that the search cannot
            adapt to the luck of one. They are copied and stay as they are. With ``split="all"``,
            one for each split in their order, which was trained on it.
        data:
            Graph with ``x``, ``edge_index``, ``y``, ``train_mask`` and ``val_mask``, ``[N]`` or
            with the option ``split`` ``[N, S]``.
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
        TaskError:
            If each node has a range of its own, and the task mini-batches.
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
        check_axis(task, data, config)
        models = [model] if isinstance(model, nn.Module) else list(model)
        self.forward, self.task = task.answering(forward), task
        self._metric = MetricWords(**task.describe_metric())

        parts = [task.without_test(one) for one in self.checked_graphs(data)]
        graph_print = splits_fingerprint(parts, task)
        self.degree_edges = degree_edges_of(parts[0], config)
        if self.degree_edges:
            parts = [AddDegreeBuckets(self.degree_edges)(one) for one in parts]
        data = parts[0]
        self.graphs = tuple(FixedGraph(one) for one in parts)

        self.models = [
            self.calibrated(one, graph) for one, graph in models_on_graphs(models, self.graphs)
        ]
        self.models[0].check_effects()
        self.layout = self.models[0].layout
        self._trainings = Trainings(self.models, config, task)
        exact = exact_inputs_of(self.layout, config)
        self.search_space = BitWidthSearchSpace(
            self.layout.sizes,
            granularity=config.granularity,
            candidates=config.candidates,
            frozen={**exact, **config.frozen},  # what the user says comes last and counts
            encoding=config.encoding,
        )
        if config.budget_bytes is not None:
            self._check_budget(config.budget_bytes)
        split = split_of(data) if config.split is None else config.split
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
                **config.asked_limit,
                "confidence": config.confidence,
                "models": len(models),
                "repeats": config.repeats,
                "first_look": config.first_look,
                "seed": config.seed,
                "task": task.fingerprint_on(data),
                **({} if split is None else {"split": split}),
            },
        }
        self._checked_studies = CheckedStudies()
        try_export(self.graph, data, partial(self._smallest, models[0]))

    @property
    def graph(self) -> FixedGraph:
        """Graph of the first model, and of all where there is one split."""
        return self.graphs[0]

    def checked_graphs(self, data: Graph) -> list[Graph]:
        """Return a graph once for each split of the search, with masks ``[N]``.

        Raises:
            GraphError:
                If it lacks a column or a split, or a mask is empty or overlaps another.
        """
        parts = split_graphs(data, self.config.split)
        for part in parts:
            self.task.check(part)
        return parts

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
        return self.config.metric_names(self._metric)

    @cached_property
    def full_precision_accuracy(self) -> float:
        """Validation metric at 32 bits after the same finetuning."""
        return self.reference.accuracy

    @property
    def limit(self) -> Limit:
        """What makes a trial feasible; a share of full precision needs its value."""
        return self.config.limit_at(self.full_precision_accuracy, self._metric)

    @cached_property
    def reference(self) -> Reference:
        """Predictions of the trainings of a trial at 32 bits, after the same finetuning."""
        found = list(self._trainings.scores(self.full_precision))
        splits = [at // self.config.repeats for at in range(len(found))]
        return reference_on(self.task, found, self.graphs, splits)

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
            Amount above ``max_drop``, in the metric's unit, for each trial; ``None`` if it is not
            of our objective.
        """
        results = [TrialScore.of(one) for one in attrs]
        bounded = with_learned_bounds(results, self.config.confidence)
        limit = self.limit
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
        """Finetune with these widths; return the mean validation metric."""
        return fmean(result.accuracy for _, result in self.finetuned(bits))

    def finetuned(self, bits: BitWidths) -> Iterator[tuple[nn.Module, TrainingResult]]:
        """Yield the models that a trial with these widths is measured on, one by one."""
        return self._trainings.finetuned(bits)

    def finetune(self, bits: BitWidths, *, seed: int) -> tuple[nn.Module, TrainingResult]:
        """Return a finetuned copy of the (first) model, and how its training went."""
        return self.models[0].finetune(bits, self.config.finetuning, seed=seed)

    def record(self) -> StudyRecord:
        """Return what a study of this objective says of itself."""
        limit = self.limit
        return StudyRecord(
            fingerprint=self.fingerprint,
            layout=self.layout,
            degree_edges=self.degree_edges,
            full_precision_accuracy=self.full_precision_accuracy,
            # With a budget it is a number without effect.
            max_drop=float(self.config.max_drop) if limit.max_drop is None else limit.max_drop,
            confidence=self.config.confidence,
            mode=self.config.mode,
            budget_bytes=self.config.budget_bytes,
            metric=self._metric,
            max_drop_share=limit.share,
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
        log_trial(trial, result, others, self.limit)
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
        slope, best = learned_slope(others), best_feasible(others, self.limit)
        memory = honest_memory(self.layout, bits).memory_bytes
        for step, measurement in enumerate(self._trainings.measure(bits, self.reference)):
            if config.mode == "pareto":
                continue  # Optuna prunes with one objective only, and a front has no limit
            if self._is_pruned(trial, step, bits, measurement, slope):
                return measurement, True
            count, confidence = len(self._trainings), config.confidence
            if measurement.is_decided(slope, self.limit, confidence, count, best, memory):
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
        violation = self.limit.violation(result)
        if self.config.mode == "budget":
            return result.expected_drop if violation <= 0 else self.limit.penalty(result)
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
            violation = self.limit.violation(result)
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
