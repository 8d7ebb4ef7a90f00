"""One trial: quantize a copy of the trained model as the trial says, finetune it, score it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from optuna.study import Study, StudyDirection
from optuna.trial import Trial
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.model import attach, bind, calibrate, set_bit_widths
from sgquant_optuna.bit_widths import BitWidths
from sgquant_optuna.degree_buckets import (
    DEFAULT_NUM_BUCKETS,
    AddDegreeBuckets,
    check_degree_edges,
    quantile_degree_edges,
)
from sgquant_optuna.fingerprint import (
    Fingerprint,
    check_fingerprint,
    graph_fingerprint,
    model_fingerprint,
    weights_sketch,
)
from sgquant_optuna.fixed_graph import FixedGraph
from sgquant_optuna.forward_pass import Forward, forward
from sgquant_optuna.graphs import check_graph
from sgquant_optuna.memory import FeatureLayout, exact_inputs, honest_memory, paper_memory
from sgquant_optuna.quantization.config import QuantizerConfig
from sgquant_optuna.search_space import (
    DEFAULT_BIT_WIDTHS,
    BitWidthSearchSpace,
    Encoding,
    check_candidates,
    parse_granularity,
)
from sgquant_optuna.storage import write_together
from sgquant_optuna.study_record import StudyRecord
from sgquant_optuna.training import FINETUNING, TrainingConfig, TrainingResult, fit

Mode = Literal["constrained", "pareto"]


class QuantizationObjective:
    """Measures what a choice of bit widths saves and what it costs in accuracy.

    Give it to ``study.optimize``, or call it with an asked trial. It sees the training and
    validation nodes only: test mask and test labels are dropped when it is made.

    In mode ``"constrained"`` the value is the memory in bytes, to be minimised. A trial whose
    accuracy drops by more than ``max_drop`` records that as a constraint and is penalised to
    ``full_precision_bytes * (1 + violation)``, so that no infeasible trial ever looks best, not
    even where constraints are ignored. In mode ``"pareto"`` the values are memory in bytes and
    accuracy drop in percentage points, both minimised.

    Args:
        model:
            The trained full-precision model, or several of one architecture that were trained
            from different seeds: each trial is then measured on all of them, so that the search
            cannot adapt to the luck of one. They are copied and stay as they are.
        data:
            Graph with ``x``, ``edge_index``, ``y``, ``train_mask`` and ``val_mask``.
        max_drop:
            Largest drop of validation accuracy that is feasible, in percentage points.
        mode:
            ``"constrained"`` or ``"pareto"``.
        granularity:
            ``"uniform"``, or any of ``lwq``, ``cwq`` and ``taq`` joined by ``+``.
        bit_widths:
            Candidate widths, of 1-8, 16 and 32.
        degree_edges:
            How many degree buckets of about equal size to make, or the lower degrees of the
            buckets above the first (the paper's way, for instance ``(4, 8, 16)``).
        frozen:
            Width of sites that are not searched, by name or by the start of it.
        exact_inputs:
            Whether to keep the graph's own features out of the search where a lossless store is
            as small as any candidate width, as for binary bags of words.
        encoding:
            ``"categorical"`` or ``"ordinal"`` parameters.
        quantizer:
            Rounding, range estimator and axis.
        finetuning:
            How each quantized copy is finetuned. The full-precision model gets the same epochs.
        layers:
            Paths of the layers whose inputs are quantized; all by default.
        attention:
            Paths of the convolutions whose attention is quantized; all known ones by default.
        repeats:
            Finetunings of each model in each trial, from different seeds; the mean accuracy of
            all counts.
        seed:
            Of the finetunings. All trials share it, so that luck is the same for all.
        forward:
            Calls the model with the graph, where its parameters are not named as the columns.

    Raises:
        GraphError:
            If the graph lacks a column, or a mask is empty or overlaps another.
        ModelError:
            If the model cannot be quantized.
        ValueError:
            If an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        data: Data,
        *,
        max_drop: float = 0.5,
        mode: Mode = "constrained",
        granularity: str = "lwq+cwq+taq",
        bit_widths: Sequence[int] = DEFAULT_BIT_WIDTHS,
        degree_edges: Sequence[int] | int = DEFAULT_NUM_BUCKETS,
        frozen: Mapping[str, int] | None = None,
        exact_inputs: bool = True,
        encoding: Encoding = "categorical",
        quantizer: QuantizerConfig | None = None,
        finetuning: TrainingConfig = FINETUNING,
        layers: Sequence[str] | None = None,
        attention: Sequence[str] | None = None,
        repeats: int = 1,
        seed: int = 0,
        forward: Forward = forward,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {get_args(Mode)}, got {mode!r}")
        if max_drop < 0:
            raise ValueError(f"max_drop: expected percentage points >= 0, got {max_drop}")
        if repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        check_graph(data)
        self._options: dict[str, Any] = {
            "max_drop": max_drop,
            "mode": mode,
            "granularity": granularity,
            "bit_widths": bit_widths,
            "frozen": frozen,
            "exact_inputs": exact_inputs,
            "encoding": encoding,
            "quantizer": quantizer,
            "finetuning": finetuning,
            "layers": layers,
            "attention": attention,
            "repeats": repeats,
            "seed": seed,
            "forward": forward,
        }
        model, *others = [model] if isinstance(model, nn.Module) else model
        self.max_drop, self.mode, self.repeats, self.seed = max_drop, mode, repeats, seed
        self.quantizer = quantizer or QuantizerConfig()
        self.finetuning = finetuning
        self._forward = forward

        data = without_test_nodes(data)
        graph_print = graph_fingerprint(data)
        self.degree_edges = self._edges(data, degree_edges, granularity)
        num_buckets = len(self.degree_edges) + 1
        if num_buckets > 1:
            data = AddDegreeBuckets(self.degree_edges)(data)
        self.graph = FixedGraph(data)

        self._model = attach(
            copy.deepcopy(model),
            config=self.quantizer,
            num_buckets=num_buckets,
            layers=layers,
            attention=attention,
        )
        candidates = {*check_candidates(bit_widths), *(frozen or {}).values()}
        with self.graph.speed_up(self._model) as graph:
            self.layout = calibrate(
                self._model, graph, bit_widths=sorted(candidates), forward=forward
            )
        exact = _exact_inputs(self.layout, bit_widths) if exact_inputs else {}
        self.search_space = BitWidthSearchSpace(
            self.layout.sizes,
            granularity=granularity,
            bit_widths=bit_widths,
            frozen={**exact, **(frozen or {})},  # what the user says comes last and counts
            encoding=encoding,
        )
        self.fingerprint: Fingerprint = {
            "graph": graph_print,
            "model": model_fingerprint(model),
            "weights": weights_sketch(nn.ModuleList([model, *others])),
            "space": {
                **self.search_space.to_dict(),
                "degree_edges": list(self.degree_edges),
            },
            "protocol": {
                "mode": mode,
                "max_drop": max_drop,
                "models": 1 + len(others),
                "repeats": repeats,
                "seed": seed,
                **{f"finetuning {key}": value for key, value in finetuning.to_dict().items()},
                **{f"quantizer {key}": value for key, value in self.quantizer.to_dict().items()},
            },
        }
        self._checked_studies: set[str] = set()
        self._members = [self, *(self.for_model(other) for other in others)]

    def _edges(
        self, data: Data, degree_edges: Sequence[int] | int, granularity: str
    ) -> tuple[int, ...]:
        if "bucket" not in parse_granularity(granularity) and self.quantizer.axis != "bucket":
            return ()
        if isinstance(degree_edges, int):
            return quantile_degree_edges(data, degree_edges)
        return check_degree_edges(degree_edges)

    @property
    def directions(self) -> list[StudyDirection]:
        """Directions of the values, for ``optuna.create_study``."""
        return [StudyDirection.MINIMIZE] * len(self.metric_names)

    @property
    def metric_names(self) -> list[str]:
        """Names of the values, for ``study.set_metric_names``."""
        if self.mode == "constrained":
            return ["memory (bytes)"]
        return ["memory (bytes)", "accuracy drop (points)"]

    @cached_property
    def full_precision_accuracy(self) -> float:
        """Validation accuracy at 32 bits after the same finetuning, in percent."""
        return self.measure(BitWidths(dict.fromkeys(self.layout.sizes, 32)))

    def memory_bytes(self, params: Mapping[str, Any]) -> float:
        """Return the honest bytes of a choice of parameters, without any training."""
        bits = self.search_space.from_params(params)
        return honest_memory(self.layout, bits).memory_bytes

    def measure(self, bits: BitWidths) -> float:
        """Finetune with these widths; return the mean validation accuracy in percent."""
        return fmean(result.accuracy for _, result in self.finetuned(bits))

    def finetuned(self, bits: BitWidths) -> Iterator[tuple[nn.Module, TrainingResult]]:
        """Yield the models that a trial with these widths is measured on, one by one."""
        for member in self._members:
            for repeat in range(self.repeats):
                yield member.finetune(bits, seed=self.seed + repeat)

    def finetune(self, bits: BitWidths, *, seed: int) -> tuple[nn.Module, TrainingResult]:
        """Return a finetuned copy of the (first) model, and how its training went."""
        model = copy.deepcopy(self._model)
        # The copy has its own context, which must see the very tensors of the shared graph.
        bind(model, self.graph.data)
        set_bit_widths(model, bits)
        result = fit(model, self.graph, self.finetuning, seed=seed, forward=self._forward)
        return model, result

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Tensor:
        """Return the class scores of all nodes, ``[N, C]``, of a finetuned copy."""
        with self.graph.speed_up(model) as graph:
            return self._forward(model.eval(), graph)

    def for_model(self, model: nn.Module) -> QuantizationObjective:
        """Return the same objective for the same model with other weights."""
        return QuantizationObjective(
            model, self.graph.data, degree_edges=self.degree_edges, **self._options
        )

    def record(self) -> StudyRecord:
        """Return what a study of this objective says of itself."""
        return StudyRecord(
            fingerprint=self.fingerprint,
            layout=self.layout,
            degree_edges=self.degree_edges,
            full_precision_accuracy=self.full_precision_accuracy,
            max_drop=self.max_drop,
            mode=self.mode,
        )

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Measure one trial.

        Returns:
            The memory in bytes (penalised if infeasible), or memory and accuracy drop.

        Raises:
            StudyMismatchError:
                If the study was measured on another graph, model, space or protocol.
        """
        self._check_study(trial)
        started = time.perf_counter()
        with write_together():
            bits = self.search_space.suggest(trial)
        honest, paper = honest_memory(self.layout, bits), paper_memory(self.layout, bits)
        accuracy = self.measure(bits)
        drop = self.full_precision_accuracy - accuracy
        told = {
            "accuracy": accuracy,
            "accuracy_drop": drop,
            "memory_bytes": honest.memory_bytes,
            "saving": honest.saving,
            "paper_memory_bytes": paper.memory_bytes,
            "paper_saving": paper.saving,
            "average_bits": paper.average_bits,
            "bit_widths": bits.to_dict(),
            "seconds": time.perf_counter() - started,
        }
        with write_together():
            for name, value in told.items():
                trial.set_user_attr(name, value)
        if self.mode == "pareto":
            return honest.memory_bytes, drop
        violation = drop - self.max_drop
        # The list form is the one that both Optuna and its dashboard read.
        trial.study._storage.set_trial_system_attr(trial._trial_id, "constraints", [violation])
        if violation <= 0:
            return honest.memory_bytes
        return honest.full_precision_bytes * (1 + violation)

    def _check_study(self, trial: Trial) -> None:
        """Check once for each study that it is of this objective; sign a new one."""
        study = trial.study
        if study.study_name in self._checked_studies:
            return
        self.sign(study)

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
            check_fingerprint(study.study_name, known.fingerprint, self.fingerprint)
            # What is compared with must not differ between workers by rounding.
            self.__dict__["full_precision_accuracy"] = known.full_precision_accuracy
        self._checked_studies.add(study.study_name)


def _exact_inputs(layout: FeatureLayout, bit_widths: Sequence[int]) -> dict[str, int]:
    sites = exact_inputs(layout, check_candidates(bit_widths))
    if len(sites) == len(layout.sizes):
        return {}  # nothing would be left to search
    return {str(site): width for site, width in sites.items()}


def without_test_nodes(data: Data) -> Data:
    """Return a copy that no search can read test labels from.

    The test mask is gone, and labels outside training and validation nodes are -1.
    """
    stripped = copy.copy(data)
    del stripped.test_mask
    assert isinstance(data.y, Tensor)
    seen = data.train_mask | data.val_mask
    stripped.y = torch.where(seen, data.y, torch.full_like(data.y, -1))
    return stripped
