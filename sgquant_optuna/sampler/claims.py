"""What a trial writes about itself so that all workers propose joint batches without a lock.

Everything is kept in the system attributes of single trials. A running trial's attributes have one
writer, its own worker, so nothing here can be lost to a concurrent write; the study's attributes,
which every worker may write, are never touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgquant_optuna.sampler.space import Index

CLAIM_KEY = "sgquant:claim"


@dataclass(frozen=True)
class Opening:
    """What the model of one round is trained on, frozen by the trial that opened the round.

    Args:
        opener:
            Number of the trial that opened the round.
        num_trials:
            Trials with a smaller number are trained on ...
        unfinished:
            ... except these numbers, which had not finished then.
        seed:
            Seed of the candidates, so that workers with other seeds rank the same ones.
    """

    opener: int
    num_trials: int
    unfinished: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Claim:
    """The configuration that one trial measures, written before it is measured.

    Args:
        round:
            Round of the proposal; round 0 is random.
        index:
            The configuration.
        space:
            Signature of the grid that ``index`` refers to.
        opening:
            Present on a trial that opened its round. When two workers opened the same round at
            once, the trial with the lowest number counts.
    """

    round: int
    index: Index
    space: str
    opening: Opening | None = None

    def to_json(self) -> str:
        """Return the text that is stored: about 100 bytes, so below every storage's limit."""
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
        """Read a trial's claim; ``None`` if it has none that can be understood."""
        text = system_attrs.get(CLAIM_KEY)
        if text is None:
            return None
        try:
            fields = json.loads(text)
            opening = fields.get("opening")
            if opening is not None:
                opening = Opening(**{**opening, "unfinished": tuple(opening["unfinished"])})
            return cls(int(fields["round"]), tuple(fields["index"]), fields["space"], opening)
        except (TypeError, KeyError, ValueError):  # of another version: as if it were hand-added
            return None
