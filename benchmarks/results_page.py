"""The tables and pictures of docs/results.md, from the studies that ``make reproduce`` measured.

    python benchmarks/results_page.py --storage storage/reproduction.db --images docs/images
    python benchmarks/results_page.py --quick

Everything is read from the studies. What is printed of the paper and of others is what they say.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
import optuna

import sgquant_optuna as sgq

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_STUDIES = Path(__file__).resolve().parents[1] / "studies"
_SECONDS, _BYTES = "studies:processor_seconds", "studies:exported_bytes"
_MB = 1e6


@dataclass(frozen=True)
class PaperRow:
    """A row of Table III of the paper (Feng et al., 2020); ``None`` is what we could not read.

    Args:
        megabytes:
            Memory of the features at full precision, in MB.
        bits:
            Average bits.
        saving:
            Times that it is smaller.
        accuracy:
            Test accuracy at full precision and quantized, of one run, in percent.
        remark:
            Why it does not add up.
    """

    megabytes: float
    bits: float | None = None
    saving: float | None = None
    accuracy: tuple[float, float] | None = None
    remark: str = ""


PAPER = {
    ("gcn", "Cora"): PaperRow(15.42, 1.22, 26.1, (82.2, 81.72), "the input alone takes 15.52 MB"),
    ("gcn", "CiteSeer"): PaperRow(
        51.06, 1.01, 31.9, (71.82, 71.54), "fits 128 hidden features; Table I says 32"
    ),
    ("gcn", "PubMed"): PaperRow(43.71, remark="fits no number of hidden features"),
    ("gcn", "Computers"): PaperRow(
        44.58, 3.29, 9.7, (89.57, 89.39), "13,381 nodes; the graph has 13,752"
    ),
    ("agnn", "Cora"): PaperRow(15.94, remark="one hidden layer fewer than its other rows"),
    ("agnn", "CiteSeer"): PaperRow(50.01),
    ("agnn", "PubMed"): PaperRow(43.46),
    ("agnn", "Computers"): PaperRow(
        44.16, 4.0, 7.37, None, "4 bits are 8 times; 13,381 nodes; the graph has 13,752"
    ),
    ("gat", "Cora"): PaperRow(16.21, 2.58, 12.4, (82.50, 82.10)),
    ("gat", "CiteSeer"): PaperRow(
        59.49, None, 13.2, None, "the formula gives 50.13 MB; the saving fits 50.4"
    ),
    ("gat", "PubMed"): PaperRow(44.48, 3.77, 8.5, (78.0, 77.3)),
    ("gat", "Computers"): PaperRow(45.71),
}


def main() -> None:
    """Print the tables of all studies that are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--storage", default="storage/reproduction.db")
    parser.add_argument("--images", type=Path, help="folder of the pictures; none by default")
    parser.add_argument("--quick", action="store_true", help="measure one small study before")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not options.quick:
        page(options.storage, options.images)
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(_STUDIES))
        storage = f"{folder}/s.db"
        words = ["--quick", "--n-trials", "4", "--storage", storage, "--out", folder]
        sys.argv = ["table3.py", *words, "--only", "gcn/digits"]
        runpy.run_path(str(_STUDIES / "table3.py"), run_name="__main__")
        page(storage, Path(folder))


def page(url: str, images: Path | None) -> None:
    """Print all tables, and save the pictures."""
    storage = sgq.open_storage(url)
    names = sorted(optuna.get_all_study_names(storage))
    kinds: dict[str, dict[tuple[str, ...], optuna.Study]] = defaultdict(dict)
    for name in names:
        kind, *words = name.split("-", 3)
        kinds[kind][tuple(words)] = optuna.load_study(study_name=name, storage=storage)
    done = {key: one for key, one in kinds["table3"].items() if _BYTES in one.user_attrs}
    if done:
        show(main_table(done))
        show(baseline_table(done))
        show(paper_table(done))
    if kinds["figure7"]:
        show(front_table(kinds["figure7"]))
        if images is not None:
            draw_fronts(kinds["figure7"], images / "figure7.png")
    if kinds["figure8"]:
        by_sampler = savings_by_sampler(kinds["figure8"])
        show(sampler_table(by_sampler))
        if images is not None:
            draw_savings(by_sampler, images / "figure8.png")


def show(lines: Iterable[str]) -> None:
    """Print a table."""
    print("\n".join(lines), end="\n\n")


def main_table(studies: dict[tuple[str, ...], optuna.Study]) -> Iterator[str]:
    """One row for each pair: memory by three accountings, accuracy, what it took."""
    yield (
        "| model, data | saving, paper's formula | honest | input exact | file, MB | bits | test, "
        "full | test, quantized | drop, 95 % interval | changed | trainings | trials | CPU, s |"
    )
    yield "|" + "---|" * 13
    for (model, data), study in studies.items():
        found = sgq.report(study)
        final = found.final
        assert final is not None
        yield row(
            f"{model}, {data}",
            *(f"{m.saving:.1f}x" for m in (found.paper, found.honest, found.exact_input)),
            f"{study.user_attrs[_BYTES] / _MB:.3f}",
            f"{found.honest.average_bits:.2f}",
            spread(final.full_precision_test),
            spread(final.quantized_test),
            interval(final.test_drop, final.test_drop_interval),
            f"{final.flips:.2f} %",
            str(final.seeds),
            str(found.num_measured),
            f"{study.user_attrs[_SECONDS]:.0f}",
        )


def baseline_table(studies: dict[tuple[str, ...], optuna.Study]) -> Iterator[str]:
    """What needs no search, on the same trainings and test nodes."""
    yield "| model, data | widths | MB | saving, honest | drop, 95 % interval |"
    yield "|" + "---|" * 5
    for (model, data), study in studies.items():
        found = sgq.report(study)
        assert found.final is not None
        full = found.honest.full_precision_bytes
        yield row(
            f"{model}, {data}",
            "searched",
            f"{found.honest.memory_bytes / _MB:.3f}",
            f"{found.honest.saving:.1f}x",
            interval(found.final.test_drop, found.final.test_drop_interval),
        )
        for name, one in found.final.baselines.items():
            drop = interval(one.test_drop, one.test_drop_interval)
            nbytes = one.memory_bytes
            yield row("", name, f"{nbytes / _MB:.3f}", f"{full / nbytes:.1f}x", drop)
        exact = found.exact_input.full_precision_bytes
        yield row("", "float16", f"{full / 2 / _MB:.3f}", "2.0x", "")
        yield row("", "float32, input exact", f"{exact / _MB:.3f}", f"{full / exact:.1f}x", "0")


def paper_table(studies: dict[tuple[str, ...], optuna.Study]) -> Iterator[str]:
    """What the paper prints of the same pairs, and ours beside it."""
    yield (
        "| model, data | paper: MB | bits | saving | test, full | test, quantized | ours: saving, "
        "honest | drop | remark on the paper's row |"
    )
    yield "|" + "---|" * 9
    for key, study in studies.items():
        model, data = key
        paper = PAPER.get((model, data))
        if paper is None:
            continue
        found = sgq.report(study)
        assert found.final is not None
        yield row(
            f"{model}, {data}",
            f"{paper.megabytes:.2f}",
            known(paper.bits),
            known(paper.saving, "x"),
            *(("", "") if paper.accuracy is None else map(str, paper.accuracy)),
            f"{found.honest.saving:.1f}x",
            f"{found.final.test_drop:.2f}",
            paper.remark,
        )


def front_table(studies: dict[tuple[str, ...], optuna.Study]) -> Iterator[str]:
    """The trials of each granularity that no other of it dominates."""
    yield "| model, data | granularity | MB | expected drop | test drop, 95 % interval |"
    yield "|" + "---|" * 5
    for (model, data, granularity), study in studies.items():
        final = sgq.report(study).final
        for trial in study.best_trials if final is not None else []:
            assert final is not None
            one = final.baselines[f"trial {trial.number}"]
            yield row(
                f"{model}, {data}",
                granularity,
                f"{one.memory_bytes / _MB:.3f}",
                f"{trial.values[1]:.2f}",
                interval(one.test_drop, one.test_drop_interval),
            )


def draw_fronts(studies: dict[tuple[str, ...], optuna.Study], path: Path) -> None:
    """Draw test error against memory, a line for each granularity."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for (_, _, granularity), study in studies.items():
        final = sgq.report(study).final
        if final is not None:
            points = sorted(
                (one.memory_bytes / _MB, 100 - fmean(one.test)) for one in final.baselines.values()
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=granularity)
    axes.set(xscale="log", xlabel="memory of features, MB", ylabel="test error, %")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def savings_by_sampler(
    studies: dict[tuple[str, ...], optuna.Study],
) -> dict[str, list[list[float]]]:
    """Return the best saving after each trial, a list for each search, by sampler."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for (_, _, words), study in studies.items():
        sampler, _, _ = words.rpartition("-")
        limit, best, line = sgq.report(study).record.limit, 1.0, []
        for trial in study.get_trials(deepcopy=False):
            result = sgq.TrialResult.of(trial.user_attrs)
            if result is not None and limit.is_feasible(result):
                best = max(best, result.saving)
            line.append(best)
        found[sampler].append(line)
    return found


def sampler_table(found: dict[str, list[list[float]]]) -> Iterator[str]:
    """Mean saving after some trials, with its standard error over searches."""
    steps = [step for step in (5, 10, 20, 30, 50, 100) if step <= shortest(found)]
    yield row("sampler", "searches", *(f"{step} trials" for step in steps))
    yield "|" + "---|" * (2 + len(steps))
    for sampler, lines in found.items():
        means = [spread([line[step - 1] for line in lines], "x") for step in steps]
        yield row(sampler, str(len(lines)), *means)


def draw_savings(found: dict[str, list[list[float]]], path: Path) -> None:
    """Draw the mean saving after each trial, a line for each sampler."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for sampler, lines in found.items():
        means = [fmean(column) for column in zip(*lines, strict=False)]
        axes.plot(range(1, len(means) + 1), means, label=sampler)
    axes.set(xlabel="trials", ylabel="saving within the limit, mean of searches")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def shortest(found: dict[str, list[list[float]]]) -> int:
    """Return the number of trials that every search has."""
    return min(len(line) for lines in found.values() for line in lines)


def row(*cells: str) -> str:
    """Return a row of Markdown."""
    return f"| {' | '.join(cells)} |"


def spread(values: Iterable[float], unit: str = "") -> str:
    """Return mean and standard deviation."""
    numbers = list(values)
    deviation = f" ± {stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{fmean(numbers):.2f}{unit}{deviation}"


def interval(drop: float, ends: tuple[float, float]) -> str:
    """Return a drop with its interval."""
    return f"{drop:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def known(value: float | None, unit: str = "") -> str:
    """Return a figure of the paper, or a dash."""
    return "–" if value is None else f"{value:g}{unit}"


if __name__ == "__main__":
    main()
