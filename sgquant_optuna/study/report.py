"""A study as a table: bits of every site, accuracy before and after, both memories."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import optuna
from optuna.trial import TrialState
from rich.console import Console, Group, RenderableType
from rich.table import Table

from sgquant_optuna.quantization.memory import (
    Memory,
    exact_input_memory,
    honest_memory,
    paper_memory,
)
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.study.bits_table import bits_table
from sgquant_optuna.study.byte_sizes import megabytes
from sgquant_optuna.study.drop_slope import certifiable_flips
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.limit import NEAR_BUDGET
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.plain_tables import PlainTable, html_table
from sgquant_optuna.study.reachable_sizes import ReachableSizes
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import TrialRow, trial_rows
from sgquant_optuna.study.selection import choose, rank
from sgquant_optuna.study.trial_result import TrialResult, TrialScore, learned_slope

_OTHER_LIMITS = (0.5, 2.0, 4.0)  # times that of the study


@dataclass(frozen=True)
class OtherLimit:
    """The best trial for another limit.

    Args:
        max_drop:
            Limit of the drop, in the unit of the metric.
        trial:
            Number of the trial.
        saving:
            Dense float32 bytes divided by its honest bytes.
    """

    max_drop: float
    trial: int
    saving: float


@dataclass(frozen=True, repr=False)
class StudyReport:
    """What a study found. It shows its tables: in a terminal, by ``print`` and in a notebook.

    Args:
        study_name:
            Name of the study.
        record:
            Record of the study.
        trial:
            Number of the chosen trial: that of the final report, else the best so far.
        result:
            Result of that trial.
        num_measured:
            Finished trials.
        num_trials:
            All trials, failed and running ones included.
        final:
            Result on fresh seeds and the test nodes, if there is one.
        certifiable_flips:
            Up to how many changed predictions, in percent, the limit can be promised with the
            labels that there are; ``None`` if no trial changed one.
        other_limits:
            Best trials for other limits.
    """

    study_name: str
    record: StudyRecord
    trial: int
    result: TrialResult
    num_measured: int
    num_trials: int
    final: FinalResult | None
    certifiable_flips: float | None = None
    other_limits: tuple[OtherLimit, ...] = ()

    @property
    def title(self) -> str:
        """What the tables are about, in a line."""
        return f"{self.study_name}: bits of trial {self.trial}"

    @property
    def bits(self) -> BitWidths:
        """Width of every site."""
        return self.result.bit_widths

    @property
    def paper(self) -> Memory:
        """Memory by the paper's accounting: dense node features alone."""
        return paper_memory(self.record.layout, self.bits)

    @property
    def honest(self) -> Memory:
        """Memory with attention, ranges, bucket ids and padding."""
        return honest_memory(self.record.layout, self.bits)

    @property
    def exact_input(self) -> Memory:
        """Honest memory, against float32 with its input in the smallest lossless store."""
        return exact_input_memory(self.record.layout, self.bits)

    @property
    def accuracy(self) -> float:
        """Validation metric of the trial."""
        return self.result.accuracy

    @property
    def accuracy_drop(self) -> float:
        """Drop of the validation metric, in its unit."""
        return self.result.accuracy_drop

    @property
    def is_feasible(self) -> bool:
        """Whether the trial is within the limit of the study."""
        return self.record.limit.is_feasible(self.result)

    @property
    def certainty(self) -> str:
        """What the labels can promise at all, as a sentence; empty where nothing is known."""
        evidence, record = self.result.evidence, self.record
        if evidence is None or self.certifiable_flips is None or record.budget_bytes is not None:
            return ""
        return (
            f"With {evidence.nodes:,} labelled nodes, a drop of at most "
            f"{record.limit.describe_drop()} can be promised where up to about "
            f"{self.certifiable_flips:.1f} % of the predictions change."
        )

    def __rich__(self) -> RenderableType:
        """Return both tables for a terminal."""
        return Group(self.bits_table(), self.summary_table())

    def __repr__(self) -> str:
        """Return both tables as plain text, for who asks for a report and prints nothing."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return both tables for a notebook."""
        return f"<p><b>{html.escape(self.title)}</b></p>\n{self.html_tables()}"

    def html_tables(self) -> str:
        """Return both tables, and what the labels can promise, in HTML."""
        tables = [html_table(table) for table in self.plain_tables()]
        return "\n".join([*tables, f"<p>{html.escape(self.certainty)}</p>"])

    def __str__(self) -> str:
        """Return both tables as plain text."""
        console = Console(file=io.StringIO(), width=100, no_color=True)
        console.print(self)
        text = console.file
        assert isinstance(text, io.StringIO)
        return text.getvalue().rstrip()

    def plain_tables(self) -> tuple[PlainTable, PlainTable]:
        """Return both tables as texts, without colours or borders."""
        return PlainTable.of(self.bits_table()), PlainTable.of(self.summary_table())

    def bits_table(self) -> Table:
        """Return the widths of every layer, component and degree bucket."""
        return bits_table(self.record, self.bits, self.title)

    def summary_table(self) -> Table:
        """Return accuracy and memory before and after."""
        table = Table(show_header=True, caption=self.certainty or None)
        for column in ("", "full precision", "quantized", ""):
            table.add_column(column, justify="right" if column else "left")
        budget, metric = self.record.budget_bytes, self.record.metric
        table.add_row(
            f"validation {metric.name}",
            metric.value(self.record.full_precision_accuracy),
            metric.value(self.accuracy),
            f"drop {metric.drop(self.accuracy_drop)}",
        )
        self._add_promise(table)
        if self.final is not None:
            self._add_final_rows(table, self.final)
        memories = {"honest": self.honest, "paper": self.paper}
        if self.exact_input.full_precision_bytes != self.honest.full_precision_bytes:
            memories = {"honest": self.honest, "exact input": self.exact_input, **memories}
        for name, memory in memories.items():
            table.add_row(
                f"memory, {name}",
                megabytes(memory.full_precision_bytes),
                megabytes(memory.memory_bytes),
                f"{memory.saving:.1f}x smaller, {memory.average_bits:.2f} bits a value",
            )
        if budget is not None:
            table.add_row("budget", "", megabytes(budget), self._budget_used(budget) + self._miss)
        table.add_row("trials", "", f"{self.num_measured}", f"of {self.num_trials} started")
        for other in self.other_limits:
            table.add_row(
                f"limit {metric.limit(other.max_drop)}",
                "",
                f"trial {other.trial}",
                f"{other.saving:.1f}x smaller",
            )
        return table

    def _add_promise(self, table: Table) -> None:
        """Tell what the trial loses on all nodes, and what the labels can promise at all."""
        result, record = self.result, self.record
        told = f"at most {record.metric.digits(result.drop_bound)} ({record.confidence:.0%})"
        if result.evidence is None:
            told = "on validation nodes alone"
        if record.budget_bytes is None:
            told += f", limit {record.limit.describe_drop()}{self._miss}"
        expected = record.metric.drop(result.estimated_drop)
        table.add_row("drop, all nodes", "", expected, told)
        if result.evidence is not None:
            table.add_row("predictions that change", "", f"{result.flips:.2f} %", "")

    @property
    def _miss(self) -> str:
        return "" if self.is_feasible else ": no trial is feasible, this is the nearest"

    def _budget_used(self, budget_bytes: float) -> str:
        """Tell how much of the budget the trial uses, and whether more was possible."""
        used = f"{self.result.memory_bytes / budget_bytes:.1%} used"
        if not (1 - NEAR_BUDGET) * budget_bytes > self.result.memory_bytes:
            return used
        sizes = ReachableSizes(self.record.layout, self.record.search_space)
        nearest = sizes.largest_below(budget_bytes)
        if nearest is None or nearest <= self.result.memory_bytes:
            return f"{used}, the nearest possible"
        return f"{used}; nearer ones, up to {megabytes(nearest)}, were not measured to be as good"

    def _add_final_rows(self, table: Table, final: FinalResult) -> None:
        metric = self.record.metric
        runs = f"{final.seeds} {'trainings' if final.retrained else 'fresh seeds'}"
        verdict = "holds" if final.holds else "does not hold"
        table.add_row(
            f"promise, {runs}",
            "",
            "" if self.record.budget_bytes is not None else verdict,
            f"drop {metric.digits(final.estimated_drop)}, at most {metric.drop(final.drop_bound)} "
            f"({self.record.confidence:.0%})",
        )
        changed = f"at most {final.flips:.2f} %"
        bound = "the drop is not larger" if metric.name == "accuracy" else ""
        table.add_row("predictions that change", "", changed, bound)
        table.add_row(
            f"test, {runs}",
            _spread(final.full_precision_test, metric),
            _spread(final.quantized_test, metric),
            _test_drop(final.test_drop, final.test_drop_interval, metric),
        )
        for name, baseline in final.baselines.items():
            table.add_row(
                f"test of {name}",
                megabytes(baseline.memory_bytes),
                _spread(baseline.test, metric),
                _test_drop(baseline.test_drop, baseline.test_drop_interval, metric),
            )


def report(study: optuna.Study) -> StudyReport:
    """Report on a study of our objective. The test nodes are not looked at.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective, or no trial is finished.
    """
    record = StudyRecord.of(study)
    rows = trial_rows(study, TrialScore)
    chosen, final = choose(study, rows, record.limit)
    trial_id = next(row.trial_id for row in rows if row.number == chosen.number)
    result = TrialResult.of(study._storage.get_trial(trial_id).user_attrs)
    assert result is not None  # its score was there
    record.check_sites(study, chosen.number, result.bit_widths)
    bounds = {name: getattr(chosen.result, name) for name in ("estimated_drop", "drop_bound")}
    result = replace(result, **bounds)  # with what later trials have taught
    results = [row.result for row in rows if row.result is not None]
    return StudyReport(
        study_name=study.study_name,
        record=record,
        trial=chosen.number,
        result=result,
        num_measured=len(results),
        num_trials=sum(row.state != TrialState.WAITING for row in rows),
        final=final,
        certifiable_flips=certifiable_flips(
            learned_slope(results),
            [(one.flips, one.evidence) for one in results if one.evidence is not None],
            record.max_drop,
            record.confidence,
        ),
        other_limits=_other_limits(study, rows, record),
    )


def _other_limits(
    study: optuna.Study, rows: Sequence[TrialRow[TrialScore]], record: StudyRecord
) -> tuple[OtherLimit, ...]:
    """Return the best trials for other limits than that of the study, where there are any."""
    answers = []
    for factor in () if record.budget_bytes is not None else _OTHER_LIMITS:
        max_drop = factor * record.max_drop
        limit = record.limit_of(max_drop=max_drop, budget_bytes=None)
        best = rank(study, rows, limit)[0]
        if max_drop and limit.is_feasible(best.result):
            answers.append(OtherLimit(max_drop, best.number, best.result.saving))
    return tuple(answers)


def _spread(values: tuple[float, ...], metric: MetricWords) -> str:
    return f"{metric.digits(fmean(values))} ± {metric.value(stdev(values))}"


def _test_drop(drop: float, interval: tuple[float, float], metric: MetricWords) -> str:
    low, high = map(metric.digits, interval)
    return f"drop {metric.drop(drop)}, 95 % CI {low} to {high}"
