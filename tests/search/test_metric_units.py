"""Searches by metrics of many scales: the same decisions, and each number in its own unit."""

import io
import logging
import re

import optuna
import pytest
import torch
from rich.console import Console

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.search.progress import SearchProgress
from sgquant_optuna.study.dashboard.notes import study_note, trial_note
from sgquant_optuna.study.figures import figures
from sgquant_optuna.study.measurements import measurements
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.status import study_status
from tests.search.test_tasks import Sage, of_nodes

NUMBER = r"-?[\d,.]+(?:e-\d+)?"


def error_of(scale, unit=""):
    def error(outputs, values):
        return scale * float((outputs - values).abs().double().mean())

    return tasks.Metric("MAE", error, unit, higher_is_better=False)


@pytest.fixture(scope="module")
def graph():
    return of_nodes(lambda z: z[:, 0])


@pytest.fixture(scope="module")
def model(graph):
    torch.manual_seed(0)
    model = Sage(graph.num_features, 1)
    sgq.fit(model, graph, TrainingConfig(epochs=40), task=tasks.regression())
    return model


def searched(model, graph, metric, *, trials=8, sampler=None, **options):
    settings = {
        "granularity": "lwq",
        "candidates": (1, 2, 4, 8),
        "exact_inputs": False,
        "finetuning": TrainingConfig(epochs=2),
        **options,
    }
    task = tasks.regression(metric)
    objective = sgq.QuantizationObjective(model, graph, task=task, **settings)
    study = sgq.create_study(objective, storage=optuna.storages.InMemoryStorage(), seed=0)
    study.optimize(objective, n_trials=trials)
    return objective, study


def decisions(study):
    limit = StudyRecord.of(study).limit
    rows = trial_rows(study, sgq.TrialResult)
    return [
        (row.result.bit_widths.to_dict(), row.result.trainings, limit.is_feasible(row.result))
        for row in rows
    ]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("options", [{"max_drop": "20%"}, {"mode": "budget", "budget_bytes": 4e3}])
def test_a_metric_in_another_unit_leads_to_the_same_decisions(model, graph, scale, options):
    (_, study), (_, other) = (
        searched(model, graph, error_of(by), trials=12, **options) for by in (1.0, scale)
    )
    assert decisions(study) == decisions(other)
    assert len({feasible for *_, feasible in decisions(study)}) == 2 or "mode" in options
    assert sgq.report(study).trial == sgq.report(other).trial
    first, second = (sgq.report(one).result.drop_bound for one in (study, other))
    assert second == pytest.approx(scale * first)


def test_a_penalty_is_beyond_every_error(model, graph):
    # Random search goes above the budget, which the default sampler does not.
    objective = sgq.QuantizationObjective(
        model,
        graph,
        task=tasks.regression(error_of(1e6)),
        mode="budget",
        budget_bytes=4e3,
        granularity="lwq",
        candidates=(1, 2, 4, 8),
        exact_inputs=False,
        finetuning=TrainingConfig(epochs=1),
    )
    study = sgq.create_study(
        objective,
        storage=optuna.storages.InMemoryStorage(),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    study.optimize(objective, n_trials=10)
    within, above = [], []
    for trial in study.trials:
        fits = trial.user_attrs["memory_bytes"] <= 4e3
        (within if fits else above).append(trial.value)
    assert within and above and max(within) < min(above)


@pytest.mark.parametrize(
    ("scale", "unit"), [(1.0, ""), (0.004, "eV"), (60_000.0, "kJ")], ids=lambda value: str(value)
)
def test_every_page_tells_the_drop_in_the_unit_of_the_metric(model, graph, scale, unit, caplog):
    caplog.set_level(logging.INFO, logger="sgquant_optuna")
    objective, study = searched(model, graph, error_of(scale, unit), max_drop="50%")
    record, full = StudyRecord.of(study), objective.full_precision_accuracy
    assert record.max_drop == pytest.approx(full / 2)
    sgq.final_report(study, objective, graph, seeds=2)
    report = sgq.report(study)
    of = f" {unit}" if unit else ""
    told = f"50 % of {record.metric.value(full)} = {record.metric.drop(full / 2)}"
    bar = SearchProgress(study, total=8, console=Console(file=io.StringIO()))
    bar.update()
    answered = sgq.answer(study, max_drop="100%")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report)
    console.print(answered)
    pages = {
        "report and answer": console.export_text(),
        "note": study_note(report, {}),
        "note of a trial": trial_note(record, report.result, None),
        "log": caplog.text,
    }
    for name, page in pages.items():
        assert "points" not in page and "e+" not in page and "accuracy" not in page.lower(), name
        drops = re.findall(rf"(?:drop|at most) ({NUMBER})({re.escape(of)})?", page)
        values = [number for number, _ in drops]
        assert values or name == "note of a trial", name
        # Not rounded away, as 0.00 would be.
        assert all(float(one.replace(",", "")) or one == "0" for one in values), (name, values)
    for name in ("report and answer", "note", "note of a trial"):
        assert told in " ".join(pages[name].split()), name
    assert record.metric.value(full) in pages["report and answer"]
    assert study_status(study).metric == record.metric
    assert answered.limit.max_drop == pytest.approx(full)


def test_the_axes_of_the_plots_are_of_the_metric(model, graph, monkeypatch):
    from matplotlib.axes import Axes

    labels, scales = [], []
    for name, kept in {"set_xlabel": labels, "set_ylabel": labels, "set_yscale": scales}.items():
        before = getattr(Axes, name)

        def spy(axes, text, *args, _before=before, _kept=kept, **options):
            _kept.append((text, options.get("linthresh")))
            return _before(axes, text, *args, **options)

        monkeypatch.setattr(Axes, name, spy)
    objective, study = searched(model, graph, error_of(1e-3, "$V$"), max_drop="1%")
    drawn = figures(measurements(study))
    assert "What each width costs in MAE" in [title for title, _ in drawn.values()]
    texts = [text for text, _ in labels]
    assert r"drop of validation MAE in \$V\$" in texts
    assert r"measured drop in \$V\$" in texts
    assert not any("points" in text or "accuracy" in text for text in texts)
    # An error of about 0.001 is linear up to a fiftieth of it, not up to 1.
    (linear, *_) = [width for scale, width in scales if scale == "symlog"]
    assert linear == pytest.approx(0.02 * objective.full_precision_accuracy)


def test_a_study_keeps_its_share_and_refuses_another_limit(model, graph, tmp_path):
    options = {"granularity": "lwq", "finetuning": TrainingConfig(epochs=1)}
    made = [
        sgq.QuantizationObjective(model, graph, task=tasks.regression(), max_drop=drop, **options)
        for drop in ("2%", " 2.0 %", 0.02)
    ]
    study = sgq.create_study(made[0], storage=tmp_path / "s.db", study_name="s")
    record = StudyRecord.of(study)
    assert record.limit == made[1].limit and record.max_drop_share == 2
    assert record.max_drop == pytest.approx(0.02 * made[0].full_precision_accuracy)
    made[1].sign(study)
    with pytest.raises(sgq.SgquantError, match=r"max_drop: was 2%, is 0\.02"):
        made[2].sign(study)
