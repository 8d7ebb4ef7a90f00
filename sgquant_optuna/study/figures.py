"""Figures of a study, as PNG bytes; matplotlib is imported when the first is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sgquant_optuna.graph.degree_edges import bucket_labels
from sgquant_optuna.quantization.sites import FULL_PRECISION
from sgquant_optuna.sampler.space import Floats
from sgquant_optuna.study.byte_sizes import megabytes
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.measurements import Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INSTALL_HINT = "plots need matplotlib: pip install 'sgquant-optuna[plots]'"
_GOOD, _BAD, _LINE, _CHOSEN = "#1b9e77", "#b8b8b8", "#3b5b92", "#d95f02"
_DPI = 110
_MAX_PARAMETERS = 24


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def figures(found: Measurements) -> dict[str, tuple[str, bytes]]:
    """Draw all that the study has something to show for.

    Args:
        found:
            Finished trials of the study.

    Returns:
        For each file name, without its ending, what it shows, and the image as PNG.

    Raises:
        ModuleNotFoundError:
            If matplotlib is not installed.
    """
    drawn = {"front": _draw("Memory against drop", _front, found, (7.0, 4.2))}
    layers = len({(s.layer, s.component) for s in found.chosen_bits})
    size = (7.0, 1.6 + 0.5 * layers)
    drawn["bits"] = _draw(f"Bits of trial {found.chosen.number}", _bits, found, size)
    if found.is_feasible.any() and found.record.budget_bytes is not None:
        drawn["least_drop"] = _draw("Least drop against trials", _least_drop, found, (7.0, 3.8))
    elif found.is_feasible.any():
        drawn["best_saving"] = _draw("Best saving against trials", _best_saving, found, (7.0, 3.8))
    if len(found.rows) > 2:
        size = (7.0, 2.0 + 0.28 * min(len(found.sensitivity()), _MAX_PARAMETERS))
        title = f"What each width costs in {_name(found)}"
        drawn["sensitivity"] = _draw(title, _sensitivity, found, size)
    if len(found.calibration().numbers) > 1:
        title = "Cost model: predicted against measured"
        drawn["cost_model"] = _draw(title, _cost_model, found, (5.4, 4.4))
    return drawn


def _draw(
    title: str,
    draw: Callable[[Axes, Measurements], None],
    found: Measurements,
    size: tuple[float, float],
) -> tuple[str, bytes]:
    # Without pyplot, which keeps figures of all threads in one list.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    draw(axes, found)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return title, file.getvalue()


def _front(axes: Axes, found: Measurements) -> None:
    x, y, good = found.megabytes, found.drops, found.is_feasible
    limit = found.record.limit
    for mask, color, label in ((~good, _BAD, "infeasible"), (good, _GOOD, "feasible")):
        if mask.any():
            axes.scatter(x[mask], y[mask], s=16, color=color, label=label)
    front = found.frontier()
    if not good[front].all():
        axes.step(x[front], y[front], where="post", color=_BAD, lw=1.2, zorder=1, label="front")
    within = front[good[front]]
    if len(within):
        right = max(x.max(), x[within[-1]])
        axes.step(
            [*x[within], right],
            [*y[within], y[within[-1]]],
            where="post",
            color=_GOOD,
            lw=2,
            zorder=2,
            label="feasible front",
        )
    if limit.budget_bytes is not None:
        label = f"budget {megabytes(limit.budget_bytes)}"
        axes.axvline(limit.budget_bytes / 1e6, color="black", lw=0.8, ls="--", label=label)
    else:
        label = f"limit {limit.describe_drop()}".replace(" = ", "\n= ").replace("$", r"\$")
        axes.axhline(limit.largest_drop, color="black", lw=0.8, ls="--", label=label)
    _mark_chosen(axes, found, x, y)
    _megabyte_scale(axes)
    _drop_scale(axes.set_yscale, axes.yaxis, y, limit)
    axes.set_xlabel("honest memory in MB")
    axes.set_ylabel(_labelled(found, f"drop of validation {found.record.metric.name}"))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bits(axes: Axes, found: Measurements) -> None:
    from matplotlib.colors import LogNorm

    bits = found.chosen_bits
    rows = list(dict.fromkeys((site.layer, site.component) for site in bits))
    by_bucket = any(site.bucket is not None for site in bits)
    labels = bucket_labels(found.record.degree_edges) if by_bucket else ["all nodes"]
    grid = np.full((len(rows), len(labels)), np.nan)
    for site, width in bits.items():
        row = rows.index((site.layer, site.component))
        grid[row, slice(None) if site.bucket is None else site.bucket] = width
    axes.imshow(
        np.ma.masked_invalid(grid),
        cmap="viridis_r",
        norm=LogNorm(1, FULL_PRECISION),
        aspect="auto",
    )
    for (row, column), width in np.ndenumerate(grid):
        if np.isfinite(width):
            color = "white" if width >= 6 else "black"
            axes.text(column, row, f"{width:g}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels)), [f"degree {x}" if by_bucket else x for x in labels])
    # Names of a user's layers may hold dollar signs, which matplotlib takes for formulas.
    names = [f"{layer} {component}".replace("$", r"\$") for layer, component in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, len(labels) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", lw=2)
    axes.tick_params(which="minor", length=0)


def _best_saving(axes: Axes, found: Measurements) -> None:
    trials = np.arange(1, len(found.rows) + 1)
    good = found.is_feasible
    axes.scatter(trials[good], found.savings[good], s=12, color=_GOOD, label="feasible trial")
    axes.step(trials, found.best_savings(), where="post", color=_LINE, lw=2, label="best so far")
    if len(trials) > 2:
        reference = found.random_reference()
        label = "random search,\nas the cost model\nexpects it"
        axes.plot(trials, reference, color="black", lw=1.2, ls=":", label=label)
    _mark_chosen(axes, found, trials, found.savings)
    axes.set_xlabel("finished trials")
    axes.set_ylabel("times smaller than float32")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _least_drop(axes: Axes, found: Measurements) -> None:
    trials = np.arange(1, len(found.rows) + 1)
    good = found.is_feasible
    label = "trial within the budget"
    axes.scatter(trials[good], found.drops[good], s=12, color=_GOOD, label=label)
    axes.step(trials, found.least_drops(), where="post", color=_LINE, lw=2, label="best so far")
    _mark_chosen(axes, found, trials, found.drops)
    _drop_scale(axes.set_yscale, axes.yaxis, found.drops[good], found.record.limit)
    axes.set_xlabel("finished trials")
    axes.set_ylabel(_labelled(found, f"drop of validation {found.record.metric.name}"))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _sensitivity(axes: Axes, found: Measurements) -> None:
    from matplotlib.colors import LogNorm

    entries = found.sensitivity()[:_MAX_PARAMETERS]
    for height, entry in enumerate(entries):
        axes.plot(
            [entry.expected.min(), entry.expected.max()], [height] * 2, color=_BAD, lw=2, zorder=1
        )
    widths = np.concatenate([entry.choices for entry in entries])
    heights = np.concatenate([[h] * len(e.choices) for h, e in enumerate(entries)])
    expected = np.concatenate([entry.expected for entry in entries])
    norm = LogNorm(1, FULL_PRECISION)
    dots = axes.scatter(expected, heights, c=widths, cmap="viridis_r", norm=norm, s=60)
    axes.set_yticks(range(len(entries)), [entry.name.replace("$", r"\$") for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    learned = f"; {found.num_learned:,} of {len(found.rows):,} trials"
    axes.set_xlabel(
        f"{_labelled(found, 'expected drop')}, averaged over the other widths\n(cost model"
        + (learned if found.num_learned < len(found.rows) else "")
        + ")"
    )
    axes.grid(alpha=0.25, axis="x")
    legend = [
        axes.scatter(
            [], [], color=dots.cmap(norm(width)), s=60, label=f"{width:g} bit{'s' * (width > 1)}"
        )
        for width in sorted(set(widths.tolist()))
    ]
    axes.legend(
        handles=legend, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def _cost_model(axes: Axes, found: Measurements) -> None:
    drops = found.calibration()
    axes.scatter(drops.predicted, drops.measured, s=18, color=_LINE, alpha=0.7)
    low = min(drops.predicted.min(), drops.measured.min())
    high = max(drops.predicted.max(), drops.measured.max())
    fine = _fine(found.record.limit)
    line = fine * np.sinh(np.linspace(np.arcsinh(low / fine), np.arcsinh(high / fine), 100))
    axes.plot(line, line, color="black", lw=0.8, ls="--", label="as predicted")
    both = np.concatenate([drops.predicted, drops.measured])
    _drop_scale(axes.set_xscale, axes.xaxis, both, found.record.limit)
    _drop_scale(axes.set_yscale, axes.yaxis, both, found.record.limit)
    axes.set_xlabel(f"{_labelled(found, 'predicted drop')}, when suggested")
    axes.set_ylabel(_labelled(found, "measured drop"))
    note = f"{len(drops.numbers):,} trials"
    if np.isfinite(drops.coverage):
        note += f"\n{drops.coverage:.0%} within 2 deviations"
    axes.text(0.02, 0.98, note, transform=axes.transAxes, va="top", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _mark_chosen(
    axes: Axes, found: Measurements, x: npt.NDArray[Any], y: npt.NDArray[Any]
) -> None:
    at = int(np.flatnonzero(found.numbers == found.chosen.number)[0])
    label = f"trial {found.chosen.number}" + (",\nheld when trained anew" if found.held else "")
    axes.scatter(x[at], y[at], s=130, marker="*", color=_CHOSEN, zorder=3, label=label)


def _megabyte_scale(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _labelled(found: Measurements, text: str) -> str:
    """Return the label of an axis of drops; a user's names may hold dollar signs."""
    return found.record.metric.labelled(text).replace("$", r"\$")


def _name(found: Measurements) -> str:
    return found.record.metric.name.replace("$", r"\$")


def _fine(limit: Limit) -> float:
    """Return up to which drop an axis is linear: a hundredth of the metric's scale, or more."""
    hundredth = 0.01 * limit.metric.scale(limit.full_precision)
    return max(2 * (limit.max_drop or 0.0), hundredth)


def _drop_scale(scale: Callable[..., None], axis: Axis, drops: Floats, limit: Limit) -> None:
    """Make an axis logarithmic away from zero if drops differ by orders of magnitude."""
    from matplotlib.ticker import FuncFormatter

    fine = _fine(limit)
    if np.abs(drops).max() > 5 * fine:
        scale("symlog", linthresh=fine)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
