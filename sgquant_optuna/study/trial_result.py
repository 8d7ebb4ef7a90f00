"""What one trial measured, as its user attributes hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.stored_values import compact, expanded, finite, tell_once

LOOK_FACTOR = 1.25
"""By how much the expected drop may still grow after a first look of some epochs."""


def is_feasible(drop_bound: float, max_drop: float) -> bool:
    """Tell whether the bound of a drop is within a limit, both in the metric's unit."""
    return drop_bound <= max_drop


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """What ranks a trial: all that is read of it where there are thousands.

    Args:
        memory_bytes:
            Memory by the honest accounting, in bytes.
        saving:
            Dense float32 bytes divided by the honest bytes.
        accuracy_drop:
            Loss of the validation metric against full precision, in its unit.
        flips:
            Predictions that differ from full precision, in percent of the nodes outside training;
            the drop on these nodes cannot be larger.
        trainings:
            Finetunings that ended; 0 if the trial was stopped after a first look at all of them.
        evidence:
            Expected and measured drops of the trainings; ``None`` for a task without classes.
        estimated_drop:
            Most probable drop on the nodes outside training, in the metric's unit.
        drop_bound:
            Upper bound of that drop with the confidence of the study, in the metric's unit.
            As stored it is what was known when the trial ended; :func:`.trial_rows` learns it from
            all trials.
    """

    memory_bytes: float
    saving: float
    accuracy_drop: float
    flips: float
    trainings: int
    evidence: DropEvidence | None
    estimated_drop: float
    drop_bound: float

    def violation(self, max_drop: float) -> float:
        """Return by how much the bound of the drop is above a limit, in the metric's unit."""
        return self.drop_bound - max_drop

    def is_feasible(self, max_drop: float) -> bool:
        """Tell whether the bound of the drop is within a limit, in the metric's unit."""
        return is_feasible(self.drop_bound, max_drop)

    @property
    def expected_drop(self) -> float:
        """Mean expected drop of the trainings, without evidence the measured one."""
        return self.accuracy_drop if self.evidence is None else self.evidence.expected_drop

    def with_slope(self, slope: DropSlope, confidence: float) -> Self:
        """Return the same measurements with another estimate and bound of the drop.

        Without evidence, the drop on the validation nodes is both.
        """
        if self.evidence is None:
            return replace(self, estimated_drop=self.accuracy_drop, drop_bound=self.accuracy_drop)
        expected = self.evidence.expected_drop * (1.0 if self.trainings else LOOK_FACTOR)
        return replace(
            self,
            estimated_drop=slope.estimate(expected),
            drop_bound=slope.bound(expected, self.evidence.deviation, confidence),
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the user attributes that hold it."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of(cls, attrs: Mapping[str, Any], trial: str = "a trial") -> Self | None:
        """Read it from the user attributes of a trial; ``None`` if our objective wrote none.

        Attributes of other types, which another program may have written, are told once, and the
        trial is left out.

        Args:
            attrs:
                User attributes of the trial.
            trial:
                Name of the trial, for the log.
        """
        if not all(name in attrs for name in cls.names()):
            return None
        try:
            return cls._read({name: expanded(attrs[name]) for name in cls.names()})
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            tell_once(f"{trial}: its attributes are not ours, going on without it ({reason})")
            return None

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Self:
        evidence = values.pop("evidence")
        trainings = values.pop("trainings")
        if type(trainings) is not int or trainings < 0:
            raise TypeError(f"trainings: expected a whole number, got {trainings!r:.60}")
        return cls(
            **{name: finite(value, name) for name, value in values.items()},
            trainings=trainings,
            evidence=None if evidence is None else DropEvidence.from_dict(evidence),
        )


Score = TypeVar("Score", bound=TrialScore)


def with_learned_bounds(results: Sequence[Score | None], confidence: float) -> list[Score | None]:
    """Learn the slope of the drop from all trials of a study, and bound each drop by it.

    Args:
        results:
            Results of the trials; ``None`` for one that our objective has not finished.
        confidence:
            Probability of the bounds, in (0, 1).
    """
    slope = learned_slope(results)
    return [one and one.with_slope(slope, confidence) for one in results]


def learned_slope(results: Iterable[TrialScore | None]) -> DropSlope:
    """Learn the slope of the drop from the trials of a study; first looks teach it, too."""
    measured = [one for one in results if one is not None]
    return DropSlope.learned([(one.flips, one.evidence) for one in measured if one.evidence])


@dataclass(frozen=True, kw_only=True, repr=False)
class TrialResult(TrialScore):
    """All that a trial measured.

    Args:
        accuracy:
            Mean validation metric of its finetunings.
        paper_memory_bytes:
            Memory by the paper's accounting, in bytes.
        paper_saving:
            Dense float32 bytes divided by the paper's bytes.
        average_bits:
            Stored bits for each value, by the paper's accounting.
        bit_widths:
            Width of every site.
        seconds:
            Wall time of the trial.
    """

    accuracy: float
    paper_memory_bytes: float
    paper_saving: float
    average_bits: float
    bit_widths: BitWidths
    seconds: float

    def __repr__(self) -> str:
        """Return what matters in a line; the widths alone may fill a screen."""
        return (
            f"<TrialResult: saving {self.saving:.1f}x, drop {self.estimated_drop:.4g} and at most "
            f"{self.drop_bound:.4g}, validation metric {self.accuracy:.6g}, "
            f"{self.memory_bytes:,.0f} bytes, {len(self.bit_widths)} bit widths>"
        )

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Self:
        widths = BitWidths.from_dict(values.pop("bit_widths"))
        score = TrialScore._read({name: values.pop(name) for name in TrialScore.names()})
        rest: dict[str, Any] = {name: finite(value, name) for name, value in values.items()}
        return cls(**vars(score), **rest, bit_widths=widths)

    def to_attrs(self) -> dict[str, Any]:
        """Return the user attributes that hold it, ready for JSON."""
        values = {name: getattr(self, name) for name in self.names()}
        return {
            **values,
            "bit_widths": compact(self.bit_widths.to_dict()),
            "evidence": self.evidence and compact(self.evidence.to_dict()),
        }
