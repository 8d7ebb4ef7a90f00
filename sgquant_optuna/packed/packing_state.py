"""What is done of a packing, in a file that a killed one leaves for the next."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sgquant_optuna.packed.growing_histogram import GrowingHistogram

_KEY = "packing"
STAGES = ("degrees", "places", "ranges", "rows", "checksum")
"""Steps of a packing, in order."""


class PackingState:
    """Step and row that a packing has reached, and the histograms that it has measured.

    Args:
        path:
            File of the state; what it holds of another job is not taken.
        job:
            Everything that the packed bytes depend on, for JSON.
        num_buckets:
            Number of histograms B.
    """

    def __init__(self, path: Path, job: dict[str, Any], num_buckets: int) -> None:
        self._path, self._job = path, json.loads(json.dumps(job))
        self.stage, self.row = STAGES[0], 0
        self.histogram = GrowingHistogram(num_buckets)
        self.resumed = False
        with suppress(FileNotFoundError, SafetensorError, LookupError, ValueError):
            with safe_open(path, framework="numpy") as file:
                known = json.loads(file.metadata()[_KEY])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if known["job"] == self._job:
                self.histogram = GrowingHistogram.of_state(arrays)
                self.stage, self.row, self.resumed = known["stage"], known["row"], True

    def save(self, stage: str, row: int) -> None:
        """Write down the step, and its first row that is not done; whole, or as it was before."""
        self.stage, self.row = stage, row
        known = {"job": self._job, "stage": stage, "row": row}
        part = self._path.with_suffix(".new")
        save_file(self.histogram.state(), part, {_KEY: json.dumps(known)})
        os.replace(part, self._path)

    def is_before(self, stage: str) -> bool:
        """Whether a step is still to be begun."""
        return STAGES.index(self.stage) < STAGES.index(stage)
