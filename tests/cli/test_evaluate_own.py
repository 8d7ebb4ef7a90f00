"""``sgquant evaluate`` of a user's own model, and of files without features."""

import re
import shutil

import pytest

from sgquant_optuna.cli import main
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.export import load_packed
from sgquant_optuna.packed.model_file import KIND
from tests.cli.test_commands import run
from tests.cli.test_evaluate_command import rows
from tests.cli.test_study_file import GRAPH, PLAN, STORAGE, search, write

REGRESSION = """
class Value(Mine):
    def forward(self, features, links):
        return super().forward(features, links)[:, 0]


def study():
    data = graph()
    data.y = data.x[:, 0] * 100
    task = sgq.tasks.regression()
    return sgq.OwnStudy(data=data, model=lambda seed: Value(), forward=call, task=task)
"""
TRAINED = """
def study():
    torch.manual_seed(0)
    return sgq.OwnStudy(data=graph(), model=[Mine(), Mine()], forward=call)
"""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with the file of a study, the study and its models."""
    folder = tmp_path_factory.mktemp("searched")
    write(folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.chdir(folder)
        main(["search", *PLAN, "--n-trials", "2", *STORAGE, "--study", "mine.py"])
    assert not stop.value.code
    return folder


@pytest.fixture
def mine(searched, tmp_path):
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    return tmp_path / "mine.py"


def export(capsys, *arguments):
    code, out, err = run(capsys, "export", *STORAGE, "--study", "mine.py", *arguments)
    assert code == 0, err
    return out


def evaluate(capsys, *arguments):
    return run(capsys, "evaluate", "m", "--repeats", "1", *arguments)


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "alone"])
def test_an_own_model_is_evaluated_with_its_file(alone, mine, capsys):
    out = export(capsys, "--out", "m", *(["--without-features"] if alone else []))
    assert ("not in the file" in out) == alone
    accuracy = re.search(r"of the packed training ([\d.]+ %)", out)[1]
    code, out, err = evaluate(capsys, "--study", "mine.py", "--test")
    assert code == 0, err
    found = rows(out)
    assert accuracy in found["validation accuracy"]
    assert f"at export {accuracy}" in found["validation accuracy"]
    assert found["test, opened now"].count("%") == 2  # float32 and packed, of the same weights
    assert "equal to" in found["features, packed now" if alone else "features stored"]
    assert ("input features" in found["file"]) == (not alone)
    assert "peak memory of a pass" not in found  # its processes know the paper's models alone


@pytest.mark.parametrize("study", [REGRESSION, TRAINED], ids=["regression", "trained"])
def test_every_kind_of_study_file_is_evaluated(study, tmp_path, capsys):
    write(tmp_path, study=study)
    limits = ("--max-drop", "1000") if study is REGRESSION else ()
    code, _, err = search(capsys, "--study", "mine.py", *limits)
    assert code == 0, err
    export(capsys, "--out", "m")
    code, out, err = evaluate(capsys, "--study", "mine.py")
    assert code == 0, err
    name = "validation MAE" if study is REGRESSION else "validation accuracy"
    shown, told = re.findall(r"[\d.]+", rows(out)[name].split("│")[3]), rows(out)[name]
    assert f"at export {shown[0]}" in told
    assert ("%" in told) == (study is TRAINED)


def test_a_file_says_which_study_file_it_needs(mine, capsys):
    export(capsys, "--out", "m")
    code, out, err = evaluate(capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "expected --study with study() of a file with SHA-256" in err and "'mine.py'" in err
    mine.write_text(mine.read_text() + "\n# another\n")
    code, _, err = evaluate(capsys, "--study", "mine.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "was made by study() of a file with SHA-256" in err


def test_a_file_made_in_python_takes_any_study_file_of_its_model(mine, tmp_path, capsys):
    export(capsys, "--out", "m", "--without-features")
    fields, tensors = read_container("m", KIND)
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    write_container("m", KIND, {**fields, "provenance": {}}, copied)
    assert evaluate(capsys, "--study", "mine.py")[0] == 0
    code, _, err = evaluate(capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected --study with the Python file of its model and graph" in err
    other = GRAPH.replace("hidden=8", "hidden=9") + mine.read_text()[len(GRAPH) :]
    (tmp_path / "mine.py").write_text(other)
    code, _, err = evaluate(capsys, "--study", "mine.py")
    assert (code, err.splitlines()[-1].startswith("error")) == (2, True)
    assert "expected the architecture that was packed (Mine)" in err


@pytest.mark.parametrize("provenance", [5, {"plan": 5}, {"plan": {"own": {"text": "a b"}}}])
def test_what_a_file_says_of_its_study_may_be_anything(provenance, mine, capsys):
    export(capsys, "--out", "m")
    fields, tensors = read_container("m", KIND)
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    write_container("m", KIND, {**fields, "provenance": provenance}, copied)
    code, _, err = evaluate(capsys, "--study", "mine.py")
    assert (code, err.count("error:")) == ((2, 1) if provenance == 5 else (0, 0))


def test_a_named_model_without_features_is_evaluated_on_its_data_set(tmp_path, capsys):
    words = ("--epochs", "3", "--finetune-epochs", "1", "--models", "1", "--final-seeds", "2")
    code, _, err = run(capsys, "search", *words, "--n-trials", "2", "--max-drop", "90", *STORAGE)
    assert code == 0, err
    code, out, err = run(capsys, "export", *STORAGE, "--out", "m", "--without-features")
    assert code == 0, err
    assert "features on this graph, not in the file" in out
    code, out, err = evaluate(capsys)
    assert code == 0, err
    origin = load_packed("m").fields["provenance"]
    found = rows(out)
    assert f"{origin['accuracy']:.2f} %" in found["validation accuracy"]
    assert "equal to" in found["features, packed now"]
    assert "each in a process of its own" in found["peak memory of a pass"]
    code, _, err = evaluate(capsys, "--study", "mine.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "is of the data set 'digits': expected no --study" in err
    code, _, err = run(
        capsys, "export", *STORAGE, "--without-features", "--assignment-only", "--quiet"
    )
    assert code == 2 and "--without-features: expected a packed model" in err
