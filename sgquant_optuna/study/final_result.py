"""What the end of a search found, as the study keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import optuna

from sgquant_optuna.storage.attributes import FINAL_ATTR
from sgquant_optuna.study.stored_values import finite, reading, stored_mapping


@dataclass(frozen=True)
class Baseline:
    """What an assignment that nobody searched gives on the trainings of the chosen trial.

    Args:
        memory_bytes:
            Honest memory, in bytes.
        average_bits:
            Bits a value by the honest accounting.
        flips:
            Predictions that change, in percent of the nodes outside training.
        test:
            Test accuracy of the quantized model, for each seed.
        test_drop:
            Mean paired drop on test nodes, in the metric's unit.
        test_drop_interval:
            95 % interval of that drop, over trainings and nodes, in its unit.
    """

    memory_bytes: float
    average_bits: float
    flips: float
    test: tuple[float, ...]
    test_drop: float
    test_drop_interval: tuple[float, float]

    def __post_init__(self) -> None:
        """Refuse what is not a number, which another program may have written."""
        numbers = (self.memory_bytes, self.average_bits, self.flips, self.test_drop)
        for value in (*numbers, *self.test, *self.test_drop_interval):
            finite(value, "a baseline of a final report")

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> Baseline:
        """Read a baseline as JSON keeps it."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        return cls(**fields)


@dataclass(frozen=True, repr=False)
class FinalResult:
    """The chosen trial, measured again from fresh seeds. Accuracies are values of the metric.

    Args:
        trial:
            Number of the chosen trial.
        holds:
            Whether the bound of its drop is within the limit with fresh trainings, too; with a
            budget of bytes, whether it is within the budget.
        seeds:
            Number of fresh trainings.
        retrained:
            Whether the full-precision model was trained anew from each seed, too.
        validation_drop:
            Mean drop on validation nodes, in the metric's unit.
        flips:
            Predictions that change, in percent of the nodes outside training; the mean drop on
            these nodes is not larger.
        estimated_drop:
            Most probable drop on the nodes outside training, in the metric's unit.
        drop_bound:
            Upper bound of that drop with the confidence of the study, in the metric's unit.
        full_precision_test:
            Test accuracy of the full-precision model, for each seed.
        quantized_test:
            Test accuracy of the quantized model, for each seed.
        test_drop_interval:
            95 % interval of the paired drop on test nodes, over trainings and nodes, in its unit.
        others:
            Other trials that were measured again: smaller ones that did not hold, or larger ones.
        times_opened:
            Number of times that this study has looked at the test nodes.
        higher_is_better:
            Whether a larger value of the metric is better.
        baselines:
            Other assignments on the same trainings and test nodes, by name.
    """

    trial: int
    holds: bool
    seeds: int
    retrained: bool
    validation_drop: float
    flips: float
    estimated_drop: float
    drop_bound: float
    full_precision_test: tuple[float, ...]
    quantized_test: tuple[float, ...]
    test_drop_interval: tuple[float, float]
    others: tuple[int, ...] = ()
    times_opened: int = 1
    higher_is_better: bool = True
    baselines: Mapping[str, Baseline] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return what matters in a line."""
        verdict = "holds" if self.holds else "does not hold"
        runs = "trainings" if self.retrained else "fresh seeds"
        return (
            f"<FinalResult: trial {self.trial} {verdict} on {self.seeds} {runs}, drop at "
            f"most {self.drop_bound:.4g}, {self.test_drop:.4g} on test items>"
        )

    def knows(self, trial: int) -> bool:
        """Tell whether a trial, by its number, was measured again for this report."""
        return trial in (self.trial, *self.others)

    @property
    def test_drop(self) -> float:
        """Mean paired drop on test nodes, in the metric's unit."""
        return fmean(self._drops)

    @property
    def _drops(self) -> list[float]:
        pairs = zip(self.full_precision_test, self.quantized_test, strict=True)
        sign = 1 if self.higher_is_better else -1
        return [sign * (full - quantized) for full, quantized in pairs]

    def _check(self) -> None:
        """Refuse values of other types, which another program may have written."""
        scalars = (self.validation_drop, self.flips, self.estimated_drop, self.drop_bound)
        for value in (*scalars, *self.full_precision_test, *self.quantized_test):
            finite(value, "a final report")
        low, high = self.test_drop_interval
        for value in (low, high):
            finite(value, "interval")
        whole = (self.trial, self.seeds, self.times_opened, *self.others)
        flags = (self.holds, self.retrained, self.higher_is_better)
        pairs = len(self.full_precision_test) == len(self.quantized_test) >= 2
        if not pairs or any(type(one) is not int for one in whole):
            raise TypeError("numbers of a final report: expected whole ones, and two seeds")
        if any(type(one) is not bool for one in flags):
            raise TypeError("flags of a final report: expected true or false")

    def save(self, study: optuna.Study) -> None:
        """Write the result into the study's user attributes."""
        study.set_user_attr(FINAL_ATTR, asdict(self))

    @classmethod
    def load(cls, study: optuna.Study) -> FinalResult | None:
        """Read the report that a study holds, or return ``None``.

        Raises:
            StudyMismatchError:
                If another version of this package wrote it.
        """
        stored = stored_mapping(study, FINAL_ATTR, what="a final report")
        if stored is None:
            return None
        with reading("a final report", study):
            lists = {name: tuple(v) for name, v in stored.items() if isinstance(v, list)}
            baselines = {
                name: Baseline.of_stored(one) for name, one in stored.get("baselines", {}).items()
            }
            made = cls(**{**stored, **lists, "baselines": baselines})
            made._check()
            return made
