"""Claims: what a trial records of itself, so that all workers sample joint batches without a lock.

Everything is stored in the attributes of single trials. Only its own worker writes the attributes
of a running trial, so no concurrent write can lose them. The attributes of the study, which every
worker may write, are never used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import index
from typing import TYPE_CHECKING, Any

from sgquant_optuna.sampler.space import Index

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

CLAIM_KEY = "sgquant:claim"
"""System attribute of a trial: its claim, which ``rounds`` writes and ``history`` reads."""

PREDICTED_KEY = "predicted"
"""User attribute of a trial: what the cost model predicted when the trial was suggested.

The sampler writes it, ``explain`` reads it.
"""

GAIN = "gain"
"""Entry of ``predicted``: the expected improvement by the trial, as a share of the best known.

``ranking`` writes it, ``settled`` reads it.
"""

FIXED_PARAMS_KEY = "fixed_params"
"""System attribute of a trial: its enqueued parameters, which ``Study.enqueue_trial`` writes."""


@dataclass(frozen=True)
class Opening:
    """The training set of one round, fixed by the trial that opened the round.

    Args:
        opener:
            Number of the trial that opened the round.
        num_trials:
            Number of trials at the opening: only trials below this number are trained on.
        unfinished:
            Numbers of the trials below it that had not finished; they are not trained on.
        seed:
            Seed of the candidates, so that workers with other seeds rank the same ones.
    """

    opener: int
    num_trials: int
    unfinished: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Claim:
    """The configuration that one trial measures, recorded before it is measured.

    Args:
        round:
            Number of the round; round 0 learns from no trial of this sampler.
        index:
            Configuration that is claimed.
        space:
            Signature of the grid that ``index`` refers to.
        opening:
            Opening of the round, on a trial that opened it. If two workers opened the same round
            at the same time, the opening of the trial with the lowest number is used.
    """

    round: int
    index: Index
    space: str
    opening: Opening | None = None

    def to_json(self) -> str:
        """Return the stored text: about 100 bytes, which is below the limit of every storage."""
        fields: dict[str, Any] = {
            "round": self.round,
            "index": list(self.index),
            "space": self.space,
        }
        if self.opening is not None:
            fields["opening"] = asdict(self.opening)
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def of(cls, system_attrs: Mapping[str, Any]) -> Claim | None:
        """Read a trial's claim; ``None`` if it has none that this version can read."""
        text = system_attrs.get(CLAIM_KEY)
        if text is None:
            return None
        try:
            fields = json.loads(text)
            opening = fields.get("opening")
            if opening is not None:
                opening = Opening(
                    **{name: index(opening[name]) for name in ("opener", "num_trials", "seed")},
                    unfinished=tuple(map(index, opening["unfinished"])),
                )
            positions = tuple(map(index, fields["index"]))
            return cls(index(fields["round"]), positions, str(fields["space"]), opening)
        # Another version or program wrote it: the trial counts as added by hand.
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return None


def prediction_of(attrs: Mapping[str, Any]) -> dict[str, float]:
    """Read what a cost model predicted of a trial from its user attributes.

    What is no finite number is left out: ``predicted`` may be a word of another program, too.
    """
    stored = attrs.get(PREDICTED_KEY)
    found = stored.items() if isinstance(stored, Mapping) else ()
    return {
        name: float(value)
        for name, value in found
        if isinstance(value, int | float) and abs(value) < math.inf
    }


def enqueued_of(system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Read the enqueued parameters of a trial; none if another program wrote something else."""
    stored = system_attrs.get(FIXED_PARAMS_KEY)
    return dict(stored) if isinstance(stored, Mapping) else {}


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """Read the violations of a trial; none if another program wrote something else."""
    try:
        found = trial.constraints
        return {name: float(value) for name, value in found.items()}
    except (AttributeError, LookupError, TypeError, ValueError):
        return {}
