import errno
import json
import os
import shutil
import sqlite3

import optuna
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from torch_geometric.data import Data

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.cli import main
from sgquant_optuna.cli.export_command import file_stem
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.packed.export import load_packed
from sgquant_optuna.search import trained_models
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.attributes import RECORD_ATTR
from sgquant_optuna.study.assignment import load_assignment
from sgquant_optuna.study.dashboard.study_files import MODEL_FILE
from tests.cli.test_commands import run
from tests.cli.test_studies import NASTY

NAME = f"{NASTY} [red]a/b[/red]"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of three trials, each measured on two trainings, and the packed best."""
    folder = tmp_path_factory.mktemp("study")
    storage = ["--storage", str(folder / "s.db")]
    main_ends_well(
        *("search", "--n-trials", "3", "--models", "2", "--final-seeds", "2"),
        *("--epochs", "5", "--finetune-epochs", "2", "--widths", "2,4,8", *storage),
        *("--name", NAME),
    )
    main_ends_well("export", "--out", str(folder / "best.safetensors"), *storage)
    return folder


def main_ends_well(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert not stop.value.code


def the_study(folder):
    return optuna.load_study(study_name=NAME, storage=open_storage(folder / "s.db"))


def test_the_packed_model_has_the_accuracy_and_the_bytes_of_its_trial(folder):
    packed = load_packed(folder / "best.safetensors")
    origin = packed.fields["provenance"]
    trial = the_study(folder).trials[origin["trial"]]
    assert origin["reproduced_accuracy"] == trial.user_attrs["accuracy"]
    assert packed.bit_widths.to_dict() == trial.user_attrs["bit_widths"]
    data = load_graph("digits")
    right = (packed(data).argmax(1) == data.y)[data.val_mask]
    assert 100 * right.double().mean().item() == pytest.approx(origin["accuracy"])
    assert sum(packed.stored_nbytes.values()) == trial.user_attrs["memory_bytes"]
    assert origin["final"]["trial"] == trial.number
    assert (origin["dataset"], origin["normalize_features"]) == ("digits", False)
    assert origin["versions"]["torch"]


def test_an_attached_model_is_a_file_of_its_study(folder, tmp_path):
    main_ends_well(
        *("export", "--attach", "--out", str(tmp_path / "m.safetensors")),
        *("--storage", str(folder / "s.db")),
    )
    study = the_study(folder)
    (meta,) = (
        meta
        for meta in optuna.artifacts.get_all_artifact_meta(study, storage=study._storage)
        if meta.filename == MODEL_FILE
    )
    content = (folder / "artifacts" / meta.artifact_id).read_bytes()
    assert content == (tmp_path / "m.safetensors").read_bytes()


def test_export_takes_the_models_that_the_search_trained(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trained_models, "train_model", None)  # a second training would fail
    main_ends_well("export", "--out", str(tmp_path / "m"), "--storage", str(folder / "s.db"))
    best = load_packed(folder / "best.safetensors")
    assert load_packed(tmp_path / "m").bit_widths == best.bit_widths


def test_evaluate_measures_it_against_float32(folder, capsys):
    code, out, err = run(capsys, "evaluate", str(folder / "best.safetensors"), "--repeats", "1")
    assert code == 0, err
    origin = load_packed(folder / "best.safetensors").fields["provenance"]
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line[0] == "│"}
    assert f"{origin['accuracy']:.2f} %" in lines["validation accuracy"]
    assert "equal to the honest accounting" in lines["features stored"]
    assert "weights" in lines["file"]
    assert "of its own" in lines["peak memory of a pass"]
    assert "sparse products" in lines["time of a pass"]
    assert "not of this one" in lines["test, of the final report"]
    assert "test, opened now" not in lines
    assert f"best.safetensors: trial {origin['trial']} of {NAME}" in " ".join(out.split())


def test_a_chosen_trial_is_exported(folder, capsys):
    arguments = ["export", "--storage", str(folder / "s.db"), "--trial", "1"]
    code, out, err = run(capsys, *arguments, "--assignment-only")
    assert code == 0, err
    assert "trial 1" in out
    assert NAME in out
    found = load_assignment(f"{file_stem(NAME)}.json")
    assert found.bit_widths.to_dict() == the_study(folder).trials[1].user_attrs["bit_widths"]
    assert found.granularity == "cwq+lwq+taq"


def test_an_assignment_quantizes_a_model(folder, capsys):
    run(capsys, "export", "--storage", str(folder / "s.db"), "--out", "a.json")
    found = load_assignment("a.json")
    data = AddDegreeBuckets(found.degree_edges)(load_graph("digits"))
    model = attach(
        make_model("gcn", 64, 10), config=found.quantizer, num_buckets=found.num_buckets
    )
    calibrate(model, data, candidates=found.candidates, forward=forward)
    set_bit_widths(model, found.bit_widths)
    assert model(data.x, data.edge_index).shape == (1797, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "7"], "expected a finished trial, got 7; finished are 0, 1, 2"),
        (["--out", "no/such/folder.safetensors"], "expected a file in an existing folder, got no"),
        (["--out", "folder.safetensors"], "folder.safetensors: expected a file to write, got a"),
        (["--out", "folder.json"], "folder.json: expected a file to write, got a folder"),
        (["--out", "."], ".: expected a file to write, got a folder"),
        (["--out", "/dev/null"], "/dev/null: expected a file to write, got a device"),
        (["--assignment-only", "--out", "/dev/null"], "expected a file to write, got a device"),
        (["--out", "/proc/model.sgq"], "/proc/model.sgq: cannot write it ("),
        (["--out", "/proc/widths.json"], "/proc/widths.json: cannot write it ("),
        (["--out", "x" * 300], "cannot write it (File name too long)"),
        (["other"], "expected study 'other'"),
    ],
)
def test_a_bad_export_is_one_line_and_exit_code_2_before_any_training(
    arguments, message, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trained_models, "load_graph", None)
    for name in ("folder.safetensors", "folder.json"):
        (tmp_path / name).mkdir()
    code, _, err = run(capsys, "export", "--storage", str(folder / "s.db"), *arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_an_export_to_a_link_writes_what_it_leads_to(folder, tmp_path, capsys):
    (tmp_path / "link.sgq").symlink_to("model.sgq")
    code, _, err = run(
        capsys, "export", "--storage", str(folder / "s.db"), "--out", "link.sgq", "--quiet"
    )
    assert code == 0, err
    assert (tmp_path / "link.sgq").is_symlink()
    assert load_packed(tmp_path / "model.sgq").fields["provenance"]["study"] == NAME


def test_a_disk_that_is_full_is_one_line_and_leaves_no_part(folder, tmp_path, monkeypatch, capsys):
    def write(path, *content):
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sgquant_optuna.packed.export.write_container", write)
    code, _, err = run(capsys, "export", "--storage", str(folder / "s.db"), "--out", "m.sgq")
    assert (code, err) == (2, "error: m.sgq: cannot write it (No space left on device)\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("gcn-Cora-lwq+cwq", "gcn-Cora-lwq+cwq"),
        ("a/b", "a_b"),
        ("-rf", "rf"),
        ("..", "study"),
        ("é\0\n:", "é_"),
        ("é" * 300, "é" * 100),
    ],
)
def test_a_file_without_a_name_is_called_as_the_study_and_lies_here(name, stem):
    assert file_stem(name) == stem


def test_a_quiet_export_shows_no_progress(folder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if the output were a terminal
    arguments = ("export", "--storage", str(folder / "s.db"), "--out", "m.sgq")
    code, out, err = run(capsys, *arguments)
    assert code == 0 and "finetuning as the trial did" in err
    assert run(capsys, *arguments, "--quiet") == (0, out, "")


def test_search_attaches_the_model_of_its_report_without_training_again(
    folder, tmp_path, monkeypatch, capsys
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(
        trained_models, "train_model", None
    )  # models of full precision are at hand
    finetune, tuned = CalibratedModel.finetune, []

    def counted(self, bits, config, *, seed):
        tuned.append(bits)
        return finetune(self, bits, config, seed=seed)

    monkeypatch.setattr(CalibratedModel, "finetune", counted)
    code, out, err = run(
        capsys,
        *("search", "--n-trials", "3", "--models", "2", "--final-seeds", "2", "--attach"),
        *("--epochs", "5", "--finetune-epochs", "2", "--widths", "2,4,8"),
        *("--storage", str(copy / "s.db"), "--name", NAME, "--quiet"),
    )
    assert code == 0, err
    study = the_study(copy)
    (meta,) = (m for m in get_all_artifact_meta(study) if m.filename == MODEL_FILE)
    attached, best = (
        load_packed(copy / "artifacts" / meta.artifact_id),
        load_packed(copy / "best.safetensors"),
    )
    trial = best.fields["provenance"]["trial"]
    assert attached.fields["provenance"]["trial"] == trial
    assert attached.bit_widths == best.bit_widths
    assert f"attached: trial {trial}, " in out.splitlines()[-1]
    # The trainings that the trial was measured on.
    assert tuned == [best.bit_widths] * max(study.trials[trial].user_attrs["trainings"], 1)


def test_a_study_of_other_weights_is_refused_by_name(folder, tmp_path, capsys):
    copy = tmp_path / "s.db"
    with sqlite3.connect(folder / "s.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
    study = optuna.load_study(study_name=NAME, storage=open_storage(copy))
    record = study.user_attrs[RECORD_ATTR]
    record["fingerprint"]["graph"]["hash"] = "0123456789abcdef"
    study.set_user_attr(RECORD_ATTR, record)
    code, _, err = run(capsys, "export", "--storage", str(copy), "--out", "m")
    assert code == 2
    assert f"study {NAME!r} was made with another graph" in err


def test_a_bad_file_is_one_line_and_exit_code_2(folder, tmp_path, capsys):
    content = (folder / "best.safetensors").read_bytes()
    damaged = bytearray(content)
    damaged[-100] ^= 4
    files = {
        "cut": (content[:-50], "not a packed file"),
        "altered": (bytes(damaged), "checksum differs"),
        "foreign": (b"something else", "not a packed file"),
    }
    for name, (stored, message) in files.items():
        (tmp_path / name).write_bytes(stored)
        code, _, err = run(capsys, "evaluate", name)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    code, _, err = run(capsys, "evaluate", "none")
    assert code == 2 and "expected a file at none" in err


def test_another_graph_is_one_line_and_exit_code_2(folder, capsys, monkeypatch):
    other = Data(x=torch.zeros(1797, 64), edge_index=torch.zeros(2, 5, dtype=torch.long))
    monkeypatch.setattr("sgquant_optuna.packed.evaluation.load_graph", lambda *_, **__: other)
    code, _, err = run(capsys, "evaluate", str(folder / "best.safetensors"))
    assert code == 2
    assert "expected the one that the model was packed for" in err


def test_the_assignment_file_is_plain_json(folder, capsys):
    run(capsys, "export", "--storage", str(folder / "s.db"), "--out", "a.json")
    with open("a.json") as file:
        content = json.load(file)
    assert content["schema"] == "sgquant_optuna/assignment"
    assert content["fingerprint"]["graph"]["nodes"] == 1797
