"""What it would cost to end searches early, from the expected gains that the sampler recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sgquant_optuna.sampler.settled import WORTHWHILE

Floats = npt.NDArray[np.float64]


def trials_at_stop(gains: Floats, patience: int) -> int:
    """Number of trials at which a search settles; all of them if it does not.

    Args:
        gains:
            Expected gain of each trial; NaN where the models did not choose it.
        patience:
            Trials in a row, of those that the models chose, that promise too little.
    """
    in_a_row = 0
    for done, gain in enumerate(gains, start=1):
        if not np.isnan(gain):
            in_a_row = in_a_row + 1 if gain < WORTHWHILE else 0
        if in_a_row == patience:
            return done
    return len(gains)


def summarise_stops(
    studies: Mapping[tuple[str, float | None], Sequence[tuple[Floats, Floats]]],
    patiences: Sequence[int],
) -> list[str]:
    """Return a Markdown table with a line for each problem.

    Args:
        studies:
            Gaps to the optimum in percent, and expected gains, of each study of a problem.
        patiences:
            Patiences to compare.
    """
    heads = [
        f"{what}, patience {patience}" for patience in patiences for what in ("trials", "gap")
    ]
    lines = [
        f"| problem | noise | {' | '.join(heads)} | gap after all |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for (problem, noise), group in studies.items():
        cells = []
        for patience in patiences:
            stops = [trials_at_stop(gains, patience) for _, gains in group]
            gaps = [gaps[stop - 1] for (gaps, _), stop in zip(group, stops, strict=True)]
            cells += [f"{np.median(stops):.0f}", _gap(gaps)]
        final = _gap([gaps[-1] for gaps, _ in group])
        name = "-" if noise is None else noise
        lines.append(f"| {problem} | {name} | {' | '.join(cells)} | {final} |")
    return lines


def _gap(gaps: Sequence[float]) -> str:
    """Median and third quartile; nothing feasible counts as infinite."""
    finite = np.where(np.isnan(gaps), np.inf, gaps)
    middle, high = np.quantile(finite, [0.5, 0.75], method="nearest")
    return f"{middle:.1f} ({high:.1f})"
