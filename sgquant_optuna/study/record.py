"""What a study says of itself: enough to report on it without graph, model or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna

from sgquant_optuna.exceptions import StudyMismatchError, StudyNotFoundError
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import Site
from sgquant_optuna.storage.attributes import RECORD_ATTR
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.search_space import BitWidthSearchSpace
from sgquant_optuna.study.stored_values import compact, finite, reading, stored_fields

Fingerprint = dict[str, Any]
"""What a study was measured on, by the parts that :data:`_PARTS` names."""

_VERSION = 3
_PARTS = {
    "graph": "graph",
    "model": "model",
    "weights": "model weights",
    "space": "search space",
    "quantizer": "quantizer",
    "finetuning": "finetuning",
    "protocol": "protocol",
}
_LEAST_SIMILARITY = 0.95  # cosine of two sketches of the same weights, rounded elsewhere

T = TypeVar("T")


@dataclass(frozen=True)
class StudyRecord:
    """The unchanging facts of one study.

    Args:
        fingerprint:
            Description of graph, model, weights, space, quantizer and protocol.
        layout:
            Every site with its size.
        degree_edges:
            Lower degrees of the buckets above the first; empty without buckets.
        full_precision_accuracy:
            Validation metric of the float32 model after the same finetuning.
        max_drop:
            Largest feasible drop, in the unit of the metric.
        confidence:
            Probability with which the bound of each drop holds.
        mode:
            ``"constrained"``, ``"pareto"`` or ``"budget"``.
        budget_bytes:
            Largest honest memory that is feasible, in bytes; in mode ``"budget"`` only.
        metric:
            Name, unit and direction of what is called accuracy here.
        max_drop_share:
            Percentage of the full-precision value that ``max_drop`` was given as; ``None`` if it
            was given in the unit of the metric.
    """

    fingerprint: Fingerprint
    layout: FeatureLayout
    degree_edges: tuple[int, ...]
    full_precision_accuracy: float
    max_drop: float
    confidence: float
    mode: str
    budget_bytes: float | None = None
    metric: MetricWords = MetricWords()
    max_drop_share: float | None = None

    @property
    def limit(self) -> Limit:
        """What makes a trial feasible."""
        if self.budget_bytes is not None:
            return self.limit_of(max_drop=None, budget_bytes=self.budget_bytes)
        return Limit(
            self.max_drop,
            share=self.max_drop_share,
            metric=self.metric,
            full_precision=self.full_precision_accuracy,
        )

    def limit_of(self, *, max_drop: float | str | None, budget_bytes: float | None) -> Limit:
        """Return another limit for the same study.

        Raises:
            ValueError:
                If ``max_drop`` is neither a number nor a share such as ``"2%"``.
        """
        return Limit.asked(
            max_drop=max_drop,
            budget_bytes=budget_bytes,
            metric=self.metric,
            full_precision=self.full_precision_accuracy,
        )

    @property
    def granularity(self) -> str:
        """Which sites share a width."""
        return str(self._read("space", lambda space: space["granularity"]))

    @property
    def quantizer(self) -> QuantizerConfig:
        """Settings of every quantizer."""
        return self._read("quantizer", lambda quantizer: QuantizerConfig(**quantizer))

    @property
    def search_space(self) -> BitWidthSearchSpace:
        """The parameters of the trials."""
        sizes = self.layout.sizes
        return self._read("space", lambda space: BitWidthSearchSpace.from_dict(sizes, space))

    def _read(self, part: str, read: Callable[[Any], T]) -> T:
        """Return what a part of the fingerprint says, or tell that another program wrote it."""
        try:
            return read(self.fingerprint[part])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StudyMismatchError(
                f"record of a study: expected a fingerprint of this version, got another {part} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            ) from error

    def check(self, study: optuna.Study, now: Fingerprint) -> None:
        """Refuse to go on with a study that was measured on something else.

        Raises:
            StudyMismatchError:
                It names every part that differs, and how.
        """
        differences = []
        for part, label in _PARTS.items():
            made_with, is_now = self.fingerprint[part], now[part]
            if part == "weights":
                if _similarity(made_with, is_now) < _LEAST_SIMILARITY:
                    differences.append(
                        f"{label} (trained otherwise, or from another seed; torch.manual_seed() "
                        f"before a model is made gives it the same weights each time)"
                    )
            elif made_with != is_now:
                differences.append(f"{label} ({_differences(made_with, is_now)})")
        if differences:
            raise StudyMismatchError(
                f"study {study.study_name!r} was made with another "
                f"{'; another '.join(differences)}. Repeat its settings to resume it, or choose "
                f"another study name"
            )

    def check_sites(self, study: optuna.Study, number: int, bits: Mapping[Site, int]) -> None:
        """Refuse a trial whose widths are not those of the sites of the study.

        Args:
            study:
                Study of this record.
            number:
                Number of the trial.
            bits:
                Widths that the trial has recorded.

        Raises:
            StudyMismatchError:
                If a site is missing, or not of the study.
        """
        for site in sorted(map(str, set(bits) ^ set(self.layout.sizes))):
            is_missing = site not in map(str, bits)
            raise StudyMismatchError(
                f"study {study.study_name!r}: expected bit widths of its {len(self.layout.sizes)} "
                f"sites in trial {number}, got {'none' if is_missing else 'one'} of {site:.100}; "
                f"another program wrote that trial: search again under another study name"
            )

    def save(self, study: optuna.Study) -> None:
        """Write the record into the study's user attributes."""
        study.set_user_attr(
            RECORD_ATTR,
            compact(
                {
                    "version": _VERSION,
                    "fingerprint": self.fingerprint,
                    "layout": self.layout.to_dict(),
                    "degree_edges": list(self.degree_edges),
                    "full_precision_accuracy": self.full_precision_accuracy,
                    "max_drop": self.max_drop,
                    "confidence": self.confidence,
                    "mode": self.mode,
                    "budget_bytes": self.budget_bytes,
                    "metric": self.metric.to_dict(),
                    **self._share(),
                }
            ),
        )

    def _share(self) -> dict[str, float]:
        """Return the share as it is kept: only where a limit was given as one."""
        return {} if self.max_drop_share is None else {"max_drop_share": self.max_drop_share}

    @staticmethod
    def confidence_in(study: optuna.Study) -> float | None:
        """Return the confidence of the bounds in a study; ``None`` if it is not of our objective.

        Raises:
            StudyMismatchError:
                If another version of this package wrote its record.
        """
        record = stored_fields(study, RECORD_ATTR, what="a record", version=_VERSION)
        with reading("a record", study):
            return None if record is None else _confidence(record)

    @classmethod
    def of(cls, study: optuna.Study) -> StudyRecord:
        """Read the record of a study of our objective.

        Raises:
            StudyNotFoundError:
                If the study is not of our objective.
            StudyMismatchError:
                If another version of this package wrote it.
        """
        record = cls.load(study)
        if record is None:
            raise StudyNotFoundError(
                f"study {study.study_name!r}: expected a study of QuantizationObjective, got "
                f"another"
            )
        return record

    @classmethod
    def load(cls, study: optuna.Study) -> StudyRecord | None:
        """Read the record of a study, or return ``None`` if it has none.

        Raises:
            StudyMismatchError:
                If another version of this package wrote it.
        """
        record = stored_fields(study, RECORD_ATTR, what="a record", version=_VERSION)
        if record is None:
            return None
        with reading("a record", study):
            budget, share = record["budget_bytes"], record.get("max_drop_share")
            return cls(
                fingerprint=dict(record["fingerprint"]),
                layout=FeatureLayout.from_dict(record["layout"]),
                degree_edges=check_degree_edges(record["degree_edges"]),
                full_precision_accuracy=finite(record["full_precision_accuracy"], "accuracy"),
                max_drop=finite(record["max_drop"], "max_drop"),
                confidence=_confidence(record),
                mode=str(record["mode"]),
                budget_bytes=None if budget is None else finite(budget, "budget_bytes"),
                metric=MetricWords(**record["metric"]),
                max_drop_share=None if share is None else finite(share, "max_drop_share"),
            )


def _confidence(record: Mapping[str, Any]) -> float:
    confidence = finite(record["confidence"], "confidence")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    return confidence


def _similarity(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) if any(one) else 1.0


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}: was {old.get(key)}, is {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )
