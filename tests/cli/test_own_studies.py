"""Studies that were made in Python, of a user's own model, in every command that takes a study."""

import re

import pytest
import torch
from torch import nn
from torch_geometric.nn import SAGEConv

from sgquant_optuna.packed.export import load_packed
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.search.trial_export import export_study
from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.storage.processes import process_name
from sgquant_optuna.study.assignment import load_assignment
from sgquant_optuna.study.dashboard.page import write_page
from tests.cli.test_commands import run
from tests.conftest import FAST

STORAGE = ("--storage", "s.db")


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = SAGEConv(12, 8), SAGEConv(8, 3)

    def forward(self, features, links):
        return self.second(self.first(features, links).relu(), links)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def objective(graph):
    torch.manual_seed(0)
    return QuantizationObjective(
        Mine(),
        graph,
        max_drop=100.0,
        granularity="lwq",
        finetuning=FAST,
        forward=lambda model, data: model(data.x, data.edge_index),
    )


@pytest.fixture
def study(objective, tmp_path):
    study = create_study(objective, storage=tmp_path / "s.db", study_name="mine", seed=0)
    study.optimize(objective, n_trials=3)
    return study


def test_it_is_packed_in_python_without_a_plan(study, objective, graph, tmp_path):
    done = export_study(study, tmp_path / "mine.safetensors", trial=1, objective=objective)
    assert done.trial == 1 and done.trial_accuracy == study.trials[1].user_attrs["accuracy"]
    assert done.reproduced_accuracy == done.trial_accuracy
    packed = load_packed(tmp_path / "mine.safetensors", Mine(), forward=objective.forward)
    assert packed.bit_widths.to_dict() == study.trials[1].user_attrs["bit_widths"]
    right = (packed(graph).argmax(1) == graph.y)[graph.val_mask]
    assert 100 * right.double().mean().item() == pytest.approx(done.accuracy)
    assert packed.fields["provenance"]["study"] == "mine"


def test_export_says_in_a_line_how_to_get_the_model(study, capsys):
    code, _, err = run(capsys, "export", *STORAGE, "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "export_study(study, 'mine.safetensors', objective=objective)" in err
    assert "--assignment-only" in err


def test_export_writes_its_bit_widths(study, capsys):
    code, out, err = run(capsys, "export", *STORAGE, "--trial", "2", "--assignment-only")
    assert code == 0, err
    assert "trial 2 of mine: mine.json" in out
    widths = load_assignment("mine.json").bit_widths.to_dict()
    assert widths == study.trials[2].user_attrs["bit_widths"]


def test_list_status_and_report_show_it(study, capsys):
    best = max(trial.user_attrs["saving"] for trial in study.trials)
    code, out, _ = run(capsys, "list", *STORAGE)
    cells = [cell.strip() for cell in out.splitlines()[-1].split("│")]
    assert code == 0 and cells == ["mine", "3", "0", "0", f"{best:.1f}x", "stopped"]
    code, out, _ = run(capsys, "status", *STORAGE)
    words = " ".join(out.split())
    assert code == 0 and "finished 3 (planned: -)" in words and process_name() in words
    for format_ in ("table", "json", "csv", "markdown", "html"):
        code, out, _ = run(capsys, "report", *STORAGE, "--format", format_)
        assert code == 0 and re.search("mine|trial", out)


def test_a_worker_is_sent_to_its_script(study, capsys):
    code, _, err = run(capsys, "worker", *STORAGE)
    assert (code, err.count("\n")) == (2, 1)
    assert "made in Python" in err and "run its own script again" in err


def test_the_dashboard_has_its_page(study, tmp_path):
    assert write_page(study, open_artifacts(storage_url=tmp_path / "s.db"))
