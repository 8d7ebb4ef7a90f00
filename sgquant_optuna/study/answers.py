"""Other limits, answered from the trials of a study by its cost model, without any training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import optuna
from rich.console import Group, RenderableType
from rich.table import Table

from sgquant_optuna.quantization.memory import Memory, honest_memory
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.sampler.best_for import Answer, best_for
from sgquant_optuna.study.bits_table import bits_table
from sgquant_optuna.study.byte_sizes import exact_megabytes, megabytes
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.reachable_sizes import ReachableSizes
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.trial_result import TrialScore

DEFAULT_CONFIDENCE = 0.9
_ONE_SIDED = 1.645  # deviations of a normal distribution that 95 % are below


@dataclass(frozen=True)
class StudyAnswer:
    """An assignment for another limit, and how sure the cost model is of it.

    Args:
        study_name:
            Name of the study.
        record:
            Record of the study.
        limit:
            Limit that was asked for.
        answer:
            Answer of the cost model: its memory in bytes, its drops in the metric's unit.
    """

    study_name: str
    record: StudyRecord
    limit: Limit
    answer: Answer

    @property
    def bits(self) -> BitWidths:
        """Width of every site."""
        return self.record.search_space.from_params(self.answer.params)

    @property
    def drop_bound(self) -> float:
        """Drop that is not exceeded with a probability of about 95 %, in the metric's unit."""
        return self.answer.drop + _ONE_SIDED * self.answer.drop_deviation

    @property
    def memory(self) -> Memory:
        """Memory by the honest accounting."""
        return honest_memory(self.record.layout, self.bits)

    def __rich__(self) -> RenderableType:
        """Return both tables for a terminal."""
        title = f"{self.study_name}: bits for {self._asked}"
        return Group(bits_table(self.record, self.bits, title), self.summary_table())

    def summary_table(self) -> Table:
        """Return memory, expected drop, and how sure the cost model is of it."""
        table = Table(show_header=False)
        answer, memory, metric = self.answer, self.memory, self.record.metric
        size = f"{megabytes(memory.memory_bytes)}, {memory.saving:.1f}x smaller"
        if self.limit.budget_bytes is not None:
            size += f", {memory.memory_bytes / self.limit.budget_bytes:.1%} of the budget"
        table.add_row("memory, honest", size)
        expected = f"{metric.digits(answer.drop)} ± {metric.drop(answer.drop_deviation)}"
        table.add_row("drop, expected", f"{expected}, by the cost model")
        table.add_row("drop, 95 % bound", metric.drop(self.drop_bound))
        if self.limit.max_drop is not None:
            claim = f"that the drop is at most {self.limit.describe_drop()}"
            table.add_row("probability", f"{answer.probability:.0%} {claim}")
        trials = ", ".join(map(str, answer.trials))
        table.add_row("measured", f"by trial {trials}" if trials else "by no trial")
        return table

    def to_json(self) -> str:
        """Return what the tables show as one JSON object."""
        described: dict[str, Any] = {
            "study": self.study_name,
            "metric": self.record.metric.to_dict(),
            **self.limit.to_json(),
            "memory_bytes": self.memory.memory_bytes,
            "saving": self.memory.saving,
            "expected_drop": self.answer.drop,
            "expected_drop_deviation": self.answer.drop_deviation,
            "drop_bound": self.drop_bound,
            "probability": None if self.limit.max_drop is None else self.answer.probability,
            "trials": list(self.answer.trials),
            "bit_widths": self.bits.to_dict(),
        }
        return json.dumps(described, indent=2) + "\n"

    @property
    def _asked(self) -> str:
        if self.limit.budget_bytes is not None:
            return f"a budget of {megabytes(self.limit.budget_bytes)}"
        return f"a drop of {self.limit.describe_drop()}"


def answer(
    study: optuna.Study,
    *,
    budget_bytes: float | None = None,
    max_drop: float | str | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
) -> StudyAnswer:
    """Find the assignment for another limit from the trials of a study, without any training.

    Args:
        study:
            Study of our objective, of any mode, with two finished trials or more.
        budget_bytes:
            Largest honest memory, in bytes: the least expected drop within it is found.
        max_drop:
            Largest drop, in the unit of the metric, or a share of its full-precision value such
            as ``"2%"``: the least memory that keeps it is found.
        confidence:
            Required probability with ``max_drop``, in (0, 1).

    Raises:
        StudyNotFoundError:
            If the study is not of our objective.
        ValueError:
            If not exactly one limit is given, no assignment meets it, or too few trials are
            finished.
    """
    record = StudyRecord.of(study)
    space = record.search_space
    limit = record.limit_of(max_drop=max_drop, budget_bytes=budget_bytes)

    def memory_bytes(params: dict[str, Any]) -> float:
        return honest_memory(record.layout, space.from_params(params)).memory_bytes

    drops = {
        row.number: row.result.estimated_drop if max_drop is None else row.result.drop_bound
        for row in trial_rows(study, TrialScore)
        if row.result is not None
    }
    found = best_for(
        study,
        drop_of=lambda trial: drops.get(trial.number),
        known_objective=memory_bytes,
        budget_bytes=budget_bytes,
        max_drop=limit.max_drop,
        confidence=confidence,
        search_space=space.distributions,
    )
    if found is not None:
        return StudyAnswer(study.study_name, record, limit, found)
    if budget_bytes is not None:
        smallest = ReachableSizes(record.layout, space).smallest
        raise ValueError(
            f"budget: expected at least the smallest assignment, {exact_megabytes(smallest)}, got "
            f"{exact_megabytes(budget_bytes)}"
        )
    raise ValueError(
        f"max_drop: expected one that an assignment keeps with a probability of {confidence:g}, "
        f"got {limit.describe_drop()}; allow more"
    )
