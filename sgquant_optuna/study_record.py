"""What a study says of itself: enough to report on it without graph, model or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.memory import FeatureLayout
from sgquant_optuna.stored_values import reading

RECORD_ATTR = "sgquant:record"
_VERSION = 1


@dataclass(frozen=True)
class StudyRecord:
    """The unchanging facts of one study.

    Args:
        fingerprint:
            Of graph, model, weights, space and protocol.
        layout:
            Every site with its size.
        degree_edges:
            Lower degrees of the buckets above the first; empty without buckets.
        full_precision_accuracy:
            Validation accuracy of the float32 model after the same finetuning, in percent.
        max_drop:
            Largest drop of validation accuracy that is feasible, in percentage points.
        mode:
            ``"constrained"`` or ``"pareto"``.
    """

    fingerprint: dict[str, Any]
    layout: FeatureLayout
    degree_edges: tuple[int, ...]
    full_precision_accuracy: float
    max_drop: float
    mode: str

    def save(self, study: optuna.Study) -> None:
        """Write the record into the study's user attributes."""
        study.set_user_attr(
            RECORD_ATTR,
            {
                "version": _VERSION,
                "fingerprint": self.fingerprint,
                "layout": self.layout.to_dict(),
                "degree_edges": list(self.degree_edges),
                "full_precision_accuracy": self.full_precision_accuracy,
                "max_drop": self.max_drop,
                "mode": self.mode,
            },
        )

    @classmethod
    def load(cls, study: optuna.Study) -> StudyRecord | None:
        """Read the record of a study, or return ``None`` if it has none.

        Raises:
            StudyMismatchError:
                If another version of this package wrote it.
        """
        record: Mapping[str, Any] | None = study.user_attrs.get(RECORD_ATTR)
        if record is None:
            return None
        if record.get("version") != _VERSION:
            raise StudyMismatchError(
                f"study {study.study_name!r}: expected a record of version {_VERSION}, got "
                f"{record.get('version')}; use the version of sgquant_optuna that made it"
            )
        with reading("a record", study):
            return cls(
                fingerprint=dict(record["fingerprint"]),
                layout=FeatureLayout.from_dict(record["layout"]),
                degree_edges=tuple(record["degree_edges"]),
                full_precision_accuracy=record["full_precision_accuracy"],
                max_drop=record["max_drop"],
                mode=record["mode"],
            )
