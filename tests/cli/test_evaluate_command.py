import pytest
import torch

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.packed import evaluation
from sgquant_optuna.packed.export import export_packed
from sgquant_optuna.quantization.sites import BitWidths
from tests.cli.test_commands import run

DIGITS = {"dataset": "digits", "seed": 0}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Writes an untrained GCN on digits with provenance of the user."""
    data = load_graph("digits")
    torch.manual_seed(0)
    model = attach(GCN(64, 10))
    layout = calibrate(model, data, candidates=(4,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))

    def write(provenance):
        path = tmp_path_factory.mktemp("model") / "m.sgq"
        export_packed(model, data, path, layout=layout, provenance=provenance)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A wide terminal, and no processes that measure memory."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(evaluation, "peak_nbytes", lambda *_: None)


def rows(out):
    return {line.split("│")[1].strip(): line for line in out.splitlines() if line[0] == "│"}


@pytest.mark.parametrize(
    "provenance",
    [
        DIGITS,
        {**DIGITS, "trial": 3, "final": {"quantized_test": "good"}, "accuracy": "good"},
        {**DIGITS, "final": {"full_precision_test": [], "quantized_test": [None]}},
        {**DIGITS, "final": [], "trial": None, "study": None, "accuracy": True},
        {**DIGITS, "accuracy": 10**400, "full_precision_accuracy": -1, "trial_accuracy": 1e300},
        {**DIGITS, "accuracy": [], "full_precision_accuracy": {}, "normalize_features": "yes"},
        {**DIGITS, "study": {"a": 1}, "trial": 10**400, "final": {"seeds": "[/bold]"}},
        {
            **DIGITS,
            "final": {"full_precision_test": [10**400], "quantized_test": [True, "[/]"]},
        },
        {**DIGITS, "study": "[/red]", "trial": "x" * 10**6, "\x1b[2J": "\x1b[2J"},
    ],
)
def test_what_the_users_provenance_does_not_tell_is_left_out(provenance, export, capsys):
    code, out, err = run(capsys, "evaluate", export(provenance), "--repeats", "1")
    assert (code, err.count("error")) == (0, 0)
    assert "m.sgq" in out and "trial" not in out
    found = rows(out)
    # Of the same weights, as float32 and packed; nothing of a trial or an export.
    assert found["validation accuracy"].count("%") == 2
    assert "validation, of the trial" not in found
    assert "test, of the final report" not in found
    assert "time of a pass" in found


def test_what_the_users_provenance_tells_is_shown(export, capsys):
    final = {"full_precision_test": [80, 90], "quantized_test": [70.0], "seeds": 2}
    told = {"accuracy": 12.5, "full_precision_accuracy": 50, "final": final}
    code, out, _ = run(capsys, "evaluate", export({**DIGITS, **told}), "--repeats", "1")
    assert code == 0
    found = rows(out)
    assert "50.00 %" in found["validation, of the trial"]
    assert "at export 12.50 %" in found["validation accuracy"]
    assert "85.00 %" in found["test, of the final report"]


def test_a_provenance_of_strange_texts_is_text_of_a_line_or_two(export, capsys):
    accuracies = {"full_precision_test": [1], "quantized_test": [2], "seeds": "[/red]\x1b[2J"}
    told = {"study": "[/red]\x1b[2J" + "x" * 10**6, "trial": 3, "final": accuracies}
    code, out, _ = run(capsys, "evaluate", export({**DIGITS, **told}), "--repeats", "1")
    assert code == 0 and "\x1b" not in out
    assert "trial 3 of" in out and "[/red]\\x1b[2Jxxx" in out and len(out) < 10_000
    assert "mean of fresh trainings" in rows(out)["test, of the final report"]


@pytest.mark.parametrize("seed", [None, "0", True, 10**30, -(10**30)])
def test_a_split_that_is_not_random_needs_no_seed(seed, export, monkeypatch, capsys):
    file = export({"dataset": "digits", "seed": seed})
    code, _, err = run(capsys, "evaluate", file)
    assert code == 2 and "the seed of its split" in err

    def load(name, root, *, seed, normalize_features):
        data = load_graph(name, seed=seed)
        del data.split_seed
        return data

    monkeypatch.setattr(evaluation, "load_graph", load)
    assert run(capsys, "evaluate", file, "--repeats", "1")[0] == 0


def test_the_graph_is_loaded_as_the_file_says(export, monkeypatch, capsys):
    rows_of = []

    def load(*arguments, **options):
        data = load_graph(*arguments, **options)
        rows_of.append(float(data.x[0].sum()))
        return data

    monkeypatch.setattr(evaluation, "load_graph", load)
    file = export({**DIGITS, "normalize_features": True})
    assert run(capsys, "evaluate", file, "--repeats", "1")[0] == 0
    assert rows_of == [pytest.approx(1)]


@pytest.mark.parametrize(
    "provenance",
    [
        *({}, {"dataset": "digits"}, {"dataset": 5, "seed": 0}),
        {"dataset": "x" * 10**6, "seed": 0},
    ],
)
def test_a_file_that_names_no_data_set_is_one_line_and_exit_code_2(provenance, export, capsys):
    code, _, err = run(capsys, "evaluate", export(provenance))
    assert (code, err.count("\n")) == (2, 1)
    assert "does not name its data set" in err
