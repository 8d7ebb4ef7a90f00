import ast
import runpy
import sys
from pathlib import Path

import pytest

import sgquant_optuna
from tests.cli.test_commands import run

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["own_model.py", "--n-trials", "3"],
            ["own-model: bits of trial", " fresh seeds", "promise"],
        ),
        (
            ["table3.py", "--quick", "--n-trials", "2", "--only", "gcn/Cora"],
            ["table3-gcn-digits: bits of", "test of uniform 8", "test of inputs 1, hidden 8"],
        ),
        (["figure1.py", "--quick"], ["gcn", "digits", "weights"]),
        (
            ["figure7.py", "--quick", "--n-trials", "1", "--only", "gcn/Cora"],
            ["figure7-gcn-digits-uniform", "figure7-gcn-digits-lwq+cwq+taq", "test of trial 0"],
        ),
        (
            ["figure8.py", "--quick", "--n-trials", "5", "--seeds", "1", "--only", "gcn/Cora"],
            ["cost models", "paper", "TPE", "random"],
        ),
        (
            ["granularity.py", "--n-trials", "2", "--model", "gcn"],
            ["uniform", "lwq+cwq+taq"],
        ),
    ],
)
def test_a_study_runs_with_a_few_trials(arguments, words, monkeypatch, capsys):
    path = STUDIES / arguments[0]
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.setattr(sys, "argv", [str(path), *arguments[1:]])
    monkeypatch.syspath_prepend(STUDIES)  # as python does for the file that it runs
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert all(word in out for word in words)


def test_the_file_of_an_own_model_serves_the_command_line_too(capsys):
    words = ["search", "--study", str(STUDIES / "own_model.py"), "--storage", "s.db", "--quiet"]
    options = ["--n-trials", "2", "--models", "1", "--epochs", "3", "--finetune-epochs", "1"]
    code, out, err = run(capsys, *words, *options, "--final-seeds", "2", "--max-drop", "50%")
    assert code == 0, err
    assert "own_model-lwq+cwq+taq: bits of trial" in out
    assert "a drop of at most 50 % of" in " ".join(out.split())


def test_every_study_is_listed():
    listed = (STUDIES / "README.md").read_text()
    assert all(path.name in listed for path in STUDIES.glob("*.py"))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.py")), ids=lambda path: path.name)
def test_a_study_uses_the_public_names_alone(path):
    public = set(sgquant_optuna.__all__)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("sgquant_optuna")
        if isinstance(node, ast.Import):
            ours = [one for one in node.names if one.name.startswith("sgquant_optuna")]
            assert [(one.name, one.asname) for one in ours] in ([], [("sgquant_optuna", "sgq")])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "sgq" or node.attr in public
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
