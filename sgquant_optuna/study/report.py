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
from rich.text import Text

from sgquant_optuna.graph.degree_edges import bucket_labels
from sgquant_optuna.quantization.memory import (
    Memory,
    exact_input_memory,
    honest_memory,
    paper_memory,
    site_store,
)
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site
from sgquant_optuna.study.drop_slope import certifiable_flips
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.plain_tables import PlainTable, html_table
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
            Limit of the drop, in percentage points.
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
        """Validation accuracy of the trial, in percent."""
        return self.result.accuracy

    @property
    def accuracy_drop(self) -> float:
        """Drop of validation accuracy, in percentage points."""
        return self.result.accuracy_drop

    @property
    def is_feasible(self) -> bool:
        """Whether the trial's drop is within the limit."""
        return self.result.is_feasible(self.record.max_drop)

    def __rich__(self) -> RenderableType:
        """Return both tables for a terminal."""
        return Group(self.bits_table(), self.summary_table())

    def __repr__(self) -> str:
        """Return both tables as plain text, for who asks for a report and prints nothing."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return both tables for a notebook."""
        title = f"<p><b>{html.escape(self.title)}</b></p>"
        return "\n".join([title, *(html_table(table) for table in self.plain_tables())])

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
        table = Table(title=Text(self.title))  # a name may look like markup
        if self.record.layout.notes:
            table.caption = Text("\n".join(self.record.layout.notes))
        labels = bucket_labels(self.record.degree_edges)
        by_bucket = any(site.bucket is not None for site in self.bits)
        table.add_column("layer")
        table.add_column("component")
        table.add_column("values", justify="right")
        columns = [f"degree {label}" for label in labels] if by_bucket else ["bits"]
        for column in columns:
            table.add_column(column, justify="right")
        parts = [
            [s for s in self.bits if (s.layer, s.component) == part]
            for part in dict.fromkeys((s.layer, s.component) for s in self.bits)
        ]
        stores = [self._store(sites) for sites in parts]
        tells_stores = any(store != "rows" for store in stores)  # else all is as expected
        if tells_stores:
            table.add_column("stored as")
        for sites, store in zip(parts, stores, strict=True):
            count = sum(self.record.layout.sizes[site].num_elements for site in sites)
            table.add_row(
                Text(sites[0].layer),  # a key of a ModuleDict may look like markup, too
                sites[0].component,
                f"{count:,}",
                *self._widths(sites, len(columns)),
                *([store] if tells_stores else []),
            )
        return table

    def _store(self, sites: list[Site]) -> str:
        sizes = self.record.layout.sizes
        stores = {site_store(site, sizes[site], self.bits[site])[0] for site in sites}
        contents = [sizes[site].content for site in sites]
        exact = all(
            content is not None and self.bits[site] in (*content.lossless, FULL_PRECISION)
            for site, content in zip(sites, contents, strict=True)
        )
        return " and ".join(sorted(stores)) + (", exact" if exact else "")

    def _widths(self, sites: list[Site], columns: int) -> list[str]:
        if sites[0].bucket is None:
            return (
                [str(self.bits[sites[0]])] * columns
                if columns == 1
                else [f"all: {self.bits[sites[0]]}", *[""] * (columns - 1)]
            )
        by_bucket = {site.bucket: str(self.bits[site]) for site in sites}
        return [by_bucket.get(bucket, "-") for bucket in range(columns)]

    def summary_table(self) -> Table:
        """Return accuracy and memory before and after."""
        table = Table(show_header=True)
        for column in ("", "full precision", "quantized", ""):
            table.add_column(column, justify="right" if column else "left")
        table.add_row(
            "validation accuracy",
            f"{self.record.full_precision_accuracy:.2f} %",
            f"{self.accuracy:.2f} %",
            f"drop {self.accuracy_drop:.2f} points",
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
        table.add_row("trials", "", f"{self.num_measured}", f"of {self.num_trials} started")
        for other in self.other_limits:
            table.add_row(
                f"limit {other.max_drop:g}",
                "",
                f"trial {other.trial}",
                f"{other.saving:.1f}x smaller",
            )
        return table

    def _add_promise(self, table: Table) -> None:
        """Tell what the trial loses on all nodes, and what the labels can promise at all."""
        result, record = self.result, self.record
        told = (
            f"at most {result.drop_bound:.2f} ({record.confidence:.0%}), limit {record.max_drop:g}"
        )
        if result.evidence is None:
            told = f"limit {record.max_drop:g}, on validation nodes alone"
        if not self.is_feasible:
            told += ": no trial is feasible, this is the nearest"
        table.add_row("drop, all nodes", "", f"{result.estimated_drop:.2f} points", told)
        if result.evidence is None:
            return
        table.add_row("predictions", "", f"{result.flips:.2f} % change", self._certainty())

    def _certainty(self) -> str:
        assert self.result.evidence is not None
        if self.certifiable_flips is None:
            return ""
        return (
            f"{self.result.evidence.nodes:,} labels promise {self.record.max_drop:g} points "
            f"for up to {self.certifiable_flips:.1f} %"
        )

    def _add_final_rows(self, table: Table, final: FinalResult) -> None:
        runs = f"{final.seeds} {'trainings' if final.retrained else 'fresh seeds'}"
        verdict = "holds" if final.holds else "does not hold"
        table.add_row(
            f"promise, {runs}",
            "",
            verdict,
            f"drop {final.estimated_drop:.2f}, at most {final.drop_bound:.2f} points "
            f"({self.record.confidence:.0%})",
        )
        table.add_row(
            "predictions", "", "", f"at most {final.flips:.2f} % change, so the drop is not larger"
        )
        low, high = final.test_drop_interval
        table.add_row(
            f"test, {runs}",
            _spread(final.full_precision_test),
            _spread(final.quantized_test),
            f"drop {final.test_drop:.2f} points, 95 % CI {low:.2f} to {high:.2f}",
        )


def report(study: optuna.Study) -> StudyReport:
    """Report on a study of our objective. The test nodes are not looked at.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective, or no trial is finished.
    """
    record = StudyRecord.of(study)
    rows = trial_rows(study, TrialScore)
    chosen, final = choose(study, rows, record.max_drop)
    trial_id = next(row.trial_id for row in rows if row.number == chosen.number)
    result = TrialResult.of(study._storage.get_trial(trial_id).user_attrs)
    assert result is not None  # its score was there
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
        other_limits=_other_limits(study, rows, record.max_drop),
    )


def _other_limits(
    study: optuna.Study, rows: Sequence[TrialRow[TrialScore]], max_drop: float
) -> tuple[OtherLimit, ...]:
    """Return the best trials for other limits than that of the study, where they differ."""
    answers = []
    for factor in _OTHER_LIMITS:
        limit = factor * max_drop
        best = rank(study, rows, limit)[0]
        if limit and best.result.is_feasible(limit):
            answers.append(OtherLimit(limit, best.number, best.result.saving))
    return tuple(answers)


def megabytes(count: float) -> str:
    """Return a number of bytes as reports show it."""
    return f"{count / 1e6:,.3f} MB"


def _spread(values: tuple[float, ...]) -> str:
    return f"{fmean(values):.2f} ± {stdev(values):.2f} %"
