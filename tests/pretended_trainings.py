"""Trainings that take no time and lose what a test says."""

from __future__ import annotations

from collections.abc import Mapping

from sgquant_optuna.search.measurement import Measurement
from sgquant_optuna.study.drop_evidence import DropEvidence


def pretend(objective, monkeypatch, expected: Mapping[int, float]) -> list[tuple[int, int]]:
    """Let trainings expect a drop, in points, that depends on the widest site alone.

    No label says otherwise, so the slope stays 1 +- 0.7: a drop f is at most 1.8971 f (90 %).

    Returns:
        A list that fills with the widest site and the trainings so far of each step.
    """
    looks = []

    def measure(bits, reference):
        drop = expected[max(bits.values())]
        for trainings in range(len(objective.models) + 1):
            drops = (drop,) * max(trainings, 1)
            looks.append((max(bits.values()), trainings))
            evidence = DropEvidence(drops, drops, 0.0, 100, {})
            yield Measurement(drop, evidence, 100 - drop, trainings)

    monkeypatch.setattr(objective._trainings, "measure", measure)
    return looks
