import shlex
import threading

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note, save_note

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.study.dashboard import page
from sgquant_optuna.study.dashboard.notes import Place, trial_note
from sgquant_optuna.study.dashboard.page import write_page
from sgquant_optuna.study.dashboard.study_files import attach_best_model
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.trial_result import TrialResult
from tests.hand_made import final_result, measured, new_study

NASTY = "it's `x` | <b>\"; rm -rf $HOME"


@pytest.fixture
def store(tmp_path):
    return open_artifacts(tmp_path / "files", storage_url=None)


@pytest.fixture
def drawn_at_once(monkeypatch):
    """Where it does not matter what the plots show."""
    monkeypatch.setattr(page, "figures", lambda found: {"front": ("Front", b"\x89PNG")})


def with_trials(study):
    study.add_trial(measured((1, 1, 1, 1), 9.0))
    study.add_trial(measured((4, 4, 4, 4), 0.25))
    return study


def names(study):
    return sorted(meta.filename for meta in get_all_artifact_meta(study))


def test_the_note_tells_the_result_and_how_to_export_it(store):
    study = with_trials(new_study(planned=2))
    assert write_page(study, store)
    note = get_note(study)
    assert "**8.0 times smaller** than float32" in note and "trial 1" in note
    assert "89.75 % (full precision 90.00 %)" in note
    assert "| conv1 | embedding | 64,000 | 4 | 4 |" in note
    assert "memory, honest" in note and "memory, paper" in note
    assert "    sgquant export hand-made --attach --out model.sgq\n" in note
    assert names(study) == ["best_saving.png", "bits.png", "front.png"]
    for meta in get_all_artifact_meta(study):
        assert f"/artifacts/{study._study_id}/{meta.artifact_id}" in note
        with store.open_reader(meta.artifact_id) as file:
            assert file.read(4) == b"\x89PNG"


def test_with_a_budget_the_note_tells_the_drop_within_it(store, drawn_at_once):
    study = new_study(budget=70_000.0)
    study.add_trial(measured((8, 8, 8, 8), 0.0, budget=70_000.0))
    assert write_page(study, store)
    assert "nearest is trial 0, 0.058 MB above the budget" in get_note(study)
    study.add_trial(measured((4, 4, 4, 4), 0.25, budget=70_000.0))
    assert write_page(study, store)
    assert (
        "**0.25 points** below full precision (validation accuracy 90.00 %) in 0.064 MB, of a "
        "budget of 0.070 MB: trial 1." in get_note(study)
    )
    final_result((80.0, 81.0), (79.0, 80.0)).save(study)
    assert write_page(study, store)
    assert "trial 1. On fresh trainings it is 0.20." in get_note(study)
    record = StudyRecord.of(study)
    for trial, text in zip(study.trials, ("**not feasible**", "feasible"), strict=True):
        note = trial_note(record, TrialResult.of(trial.user_attrs), {"objective 0": 0.3})
        assert f"smaller, budget 0.070 MB: {text} |" in note
        assert "| predicted drop | 0.30 points |" in note


def test_without_a_feasible_trial_the_note_says_so(store, drawn_at_once):
    study = new_study()
    study.add_trial(measured((1, 1, 1, 1), 9.0))
    assert write_page(study, store)
    assert "**No trial is feasible yet.**" in get_note(study)


@pytest.mark.parametrize(
    ("place", "lines"),
    [
        (
            Place("/my data/s.db", "s3://files"),
            [
                "sgquant export hand-made --attach --out model.sgq --storage '/my data/s.db' "
                "--artifacts s3://files"
            ],
        ),
        (
            Place("mysql+pymysql://me:***@host/db"),
            [
                "# SGQUANT_STORAGE holds the URL: mysql+pymysql://me:***@host/db",
                "sgquant export hand-made --attach --out model.sgq",
            ],
        ),
    ],
)
def test_the_export_command_finds_the_storage_and_tells_no_password(
    place, lines, store, drawn_at_once
):
    study = with_trials(new_study(planned=2))
    write_page(study, store, place=place)
    shown = [line.strip() for line in get_note(study).splitlines() if line.startswith("    ")]
    assert shown == lines


def test_the_note_of_a_study_made_in_python_promises_only_what_works(store, drawn_at_once):
    study = with_trials(new_study())
    write_page(study, store, place=Place("/my/s.db", "s3://files"))
    shown = [line.strip() for line in get_note(study).splitlines() if line.startswith("    ")]
    assert shown == [
        'sgquant_optuna.export_study(study, "model.sgq", objective=objective)',
        "sgquant export hand-made --assignment-only --storage /my/s.db",
    ]


def test_the_export_command_of_a_nasty_name_is_quoted_for_the_shell(store, drawn_at_once):
    study = with_trials(new_study(name=NASTY))
    write_page(study, store)
    note = get_note(study)
    (line,) = [line for line in note.splitlines() if line.startswith("    sgquant export")]
    assert shlex.split(line)[2] == NASTY
    assert "<b>" not in note.splitlines()[0]


def test_a_page_is_written_anew_only_when_trials_have_finished(store, drawn_at_once):
    study = with_trials(new_study())
    assert write_page(study, store)
    first = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(study)}
    assert not write_page(study, store)
    study.add_trial(measured((2, 2, 2, 2), 0.25))
    assert write_page(study, store)
    assert "trial 2" in get_note(study)
    again = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(study)}
    assert first.items() <= again.items()


def test_plots_that_are_missing_in_the_store_are_written_again(store, tmp_path, drawn_at_once):
    study = with_trials(new_study())
    write_page(study, store)
    other = open_artifacts(tmp_path / "others", storage_url=None)
    assert not write_page(study, other)
    assert write_page(study, other, check_files=True)
    for meta in get_all_artifact_meta(study):
        other.open_reader(meta.artifact_id).close()
    assert not write_page(study, other, check_files=True)


def test_a_note_that_a_person_edited_stays(store, drawn_at_once):
    study = with_trials(new_study())
    write_page(study, store)
    save_note(study, "mine")
    study.add_trial(measured((2, 2, 2, 2), 0.25))
    assert write_page(study, store)
    assert get_note(study) == "mine"


def test_of_several_processes_one_writes(store, tmp_path, monkeypatch, drawn_at_once):
    with_trials(new_study(open_storage(tmp_path / "s.db")))
    written = []
    write = page._write
    monkeypatch.setattr(page, "_write", lambda *args: (written.append(1), write(*args)))

    def process():
        study = optuna.load_study(study_name="hand-made", storage=open_storage(tmp_path / "s.db"))
        write_page(study, store)

    threads = [threading.Thread(target=process) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [1]


def test_studies_of_others_and_new_ones_get_no_page(store):
    assert not write_page(optuna.create_study(), store)
    assert not write_page(new_study(), store)


def test_the_best_model_is_attached_and_replaced(store, tmp_path):
    study, model = with_trials(new_study()), tmp_path / "model.sgq"
    ids = []
    for content in (b"one", b"two"):
        model.write_bytes(content)
        ids.append(attach_best_model(study, store, model))
        with store.open_reader(ids[-1]) as file:
            assert file.read() == content
    assert ids[0] == ids[1]
    assert names(study) == ["best_model.sgq"]
