"""A budget of bytes on the command line: read, checked, searched and asked for later."""

import json

import pytest

from sgquant_optuna.cli import main
from sgquant_optuna.cli.plan_options import plan_of_options
from sgquant_optuna.storage import open_storage
from tests.hand_made import measured, new_study


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def run(capsys, *arguments):
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_budget_makes_a_plan_of_that_mode():
    plan = plan_of_options(budget="1.5MiB")
    assert (plan.mode, plan.budget_bytes) == ("budget", 1_572_864)
    assert (plan_of_options().mode, plan_of_options().budget_bytes) == ("constrained", None)
    assert plan_of_options(mode="pareto", max_drop=1.0).max_drop == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--budget", "8 miles"], "--budget: expected a size such as 8MB, 800kB,"),
        (["search", "--budget", "1MB", "--max-drop", "1"], "expected --budget or --max-drop, got"),
        (["search", "--budget", "1MB", "--mode", "pareto"], "expected with mode 'budget', and"),
        (["search", "--mode", "budget"], "budget_bytes: expected with mode 'budget', and"),
        (["report", "--budget", "1MB", "--max-drop", "1"], "expected --budget or --max-drop, got"),
        (["report", "--budget", "9kB"], "expected at least the smallest assignment, 0.016 MB"),
        (["report", "--max-drop", "1", "--format", "csv"], "--format: expected table or json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    study = new_study(open_storage("s.db"))
    for widths, drop in (((1, 1, 1, 1), 9.0), ((4, 4, 4, 4), 0.25)):
        study.add_trial(measured(widths, drop))
    code, out, err = run(capsys, *arguments, "--storage", "s.db")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_search_keeps_to_its_budget_and_answers_others_without_training(capsys):
    quick = ["--finetune-epochs", "1", "--epochs", "2", "--models", "1", "--final-seeds", "2"]
    options = ["--search-inputs", "--n-trials", "3", "--storage", "s.db"]
    code, out, _ = run(capsys, "search", "--budget", "60kB", *quick, *options)
    assert code == 0 and "0.060 MB" in out
    code, out, _ = run(capsys, "report", "--storage", "s.db", "--format", "json")
    told = json.loads(out)
    assert told["mode"] == "budget" and told["is_feasible"]
    assert 0.9 * 60_000 <= told["memory"]["honest"]["memory_bytes"] <= 60_000
    code, out, _ = run(capsys, "status", "--storage", "s.db")
    assert code == 0 and f"drop {told['promise']['estimated_drop']:.2f} points" in out
    code, out, _ = run(capsys, "report", "--budget", "90kB", "--storage", "s.db")
    assert code == 0 and "bits for a budget of 0.090 MB" in out
    arguments = ["--budget", "90kB", "--format", "json", "--out", "answer.json"]
    code, out, _ = run(capsys, "report", "--storage", "s.db", *arguments)
    assert (code, out) == (0, "")
    with open("answer.json") as file:
        assert 0.9 * 90_000 <= json.load(file)["memory_bytes"] <= 90_000
