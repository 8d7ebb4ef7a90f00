"""What one trial tells about the loss of accuracy, small enough for an attribute of the trial.

The drop of one trial on some hundred labelled nodes is mostly luck. What all trials together lose
at each node is not: one number is learned from it (:mod:`.drop_slope`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from statistics import fmean
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sgquant_optuna.study.stored_values import finite

MAX_GROUPS = 1000
"""Largest number of groups: with more labelled nodes, several share one."""


@dataclass(frozen=True)
class DropEvidence:
    """Expected and measured drops of each training, and at which labelled nodes they occur.

    Labelled node i belongs to group ``i % groups``, so that all trials of a study have the same
    groups.

    Args:
        expected:
            Loss of accuracy on the nodes outside training that the full-precision models expect
            from the predictions that change, for each training, in the metric's unit.
        measured:
            Loss of accuracy on the labelled validation nodes, for each training, in the
            metric's unit.
        deviation:
            Standard deviation of the drop on the nodes outside training over their unknown labels,
            were they drawn from the probabilities of the full-precision models, in points.
        nodes:
            Number of labelled nodes.
        lost:
            Right predictions of full precision less those of the quantized model, summed over the
            nodes of a group and over the trainings, by group; groups with 0 are left out.
        max_groups:
            Largest number of groups.
    """

    expected: tuple[float, ...]
    measured: tuple[float, ...]
    deviation: float
    nodes: int
    lost: Mapping[int, float]
    max_groups: int = MAX_GROUPS

    @property
    def trainings(self) -> int:
        """Number of trainings that were measured."""
        return len(self.expected)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return min(self.nodes, self.max_groups)

    @property
    def expected_drop(self) -> float:
        """Mean expected drop, in the metric's unit."""
        return fmean(self.expected)

    @classmethod
    def of(
        cls,
        expected: Sequence[float],
        lost: Sequence[npt.NDArray[Any]],
        deviation: float,
    ) -> Self:
        """Join what the trainings of a trial lost.

        Args:
            expected:
                Expected drop of each training, in the metric's unit.
            lost:
                Change of each training at the labelled nodes, ``[nodes]``: 1 where full precision
                was right and the quantized model is not, -1 the other way round, else 0; times
                their number over that of a split which measures on some of them only.
            deviation:
                Standard deviation of the drop over the unknown labels, in the metric's unit.
        """
        nodes = len(lost[0])
        groups = min(nodes, MAX_GROUPS)
        summed = np.zeros(groups, dtype=lost[0].dtype)
        np.add.at(summed, np.arange(nodes) % groups, np.sum(lost, axis=0))
        (at,) = np.nonzero(summed)
        return cls(
            expected=tuple(expected),
            measured=tuple(100.0 * float(one.sum()) / nodes for one in lost),
            deviation=deviation,
            nodes=nodes,
            lost=dict(zip(at.tolist(), summed[at].tolist(), strict=True)),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join what the trainings of several splits tell, over the labelled nodes of all.

        Their drops are as lucky together as one of them alone: they share most of the nodes.
        """
        summed: dict[int, float] = {}
        for part in parts:
            for group, one in part.lost.items():
                summed[group] = summed.get(group, 0) + one
        count = sum(part.trainings for part in parts)
        return cls(
            expected=tuple(one for part in parts for one in part.expected),
            measured=tuple(one for part in parts for one in part.measured),
            deviation=sum(part.trainings * part.deviation for part in parts) / count,
            nodes=parts[0].nodes,
            lost={group: one for group, one in sorted(summed.items()) if one},
            max_groups=parts[0].max_groups,
        )

    def lost_by_group(self) -> npt.NDArray[np.float64]:
        """Return the nodes that each group loses, mean over the trainings, ``[groups]``."""
        summed = np.zeros(self.groups)
        summed[list(self.lost)] = list(self.lost.values())
        mean: npt.NDArray[np.float64] = summed / self.trainings
        return mean

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "expected": list(self.expected),
            "measured": list(self.measured),
            "deviation": self.deviation,
            "nodes": self.nodes,
            "groups": list(self.lost),
            "lost": list(self.lost.values()),
            **({} if self.max_groups == MAX_GROUPS else {"max_groups": self.max_groups}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` returned.

        Raises:
            TypeError:
                If a value is no number, or a number of something is not whole.
            ValueError:
                If it holds no training, or a group that does not exist.
        """
        made = cls(
            expected=tuple(finite(one, "expected") for one in values["expected"]),
            measured=tuple(finite(one, "measured") for one in values["measured"]),
            deviation=finite(values["deviation"], "deviation"),
            nodes=index(values["nodes"]),
            lost={
                index(group): finite(one, "lost")
                for group, one in zip(values["groups"], values["lost"], strict=True)
            },
            max_groups=index(values.get("max_groups", MAX_GROUPS)),
        )
        known = range(made.groups)
        fits = len(made.expected) == len(made.measured) and made.deviation >= 0
        if not made.expected or not fits or any(group not in known for group in made.lost):
            raise ValueError(
                f"evidence of a trial: expected trainings, and groups below {made.groups}, got "
                f"{made.trainings} trainings and groups {list(made.lost)[:5]}"
            )
        return made
