import optuna
import pytest

from sgquant_optuna.exceptions import StudyMismatchError, StudyNotFoundError
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.storage.attributes import RECORD_ATTR
from sgquant_optuna.study.record import StudyRecord
from tests.hand_made import new_study

SPACE = {"candidates": [1, 2], "granularity": "lwq"}
FINGERPRINT = {
    "graph": {},
    "model": {},
    "weights": [0.0],
    "space": SPACE,
    "quantizer": {"rounding": "nearest"},
    "finetuning": {"epochs": 30},
    "protocol": {"seed": 0},
}


def a_record(**fingerprint):
    return StudyRecord(
        fingerprint={**FINGERPRINT, **fingerprint},
        layout=FeatureLayout({}, 0),
        degree_edges=(),
        full_precision_accuracy=90.0,
        max_drop=0.5,
        confidence=0.9,
        mode="constrained",
    )


def a_study():
    return optuna.create_study(study_name="mine")


def test_the_message_names_what_differs_and_how():
    now = {**FINGERPRINT, "space": {**SPACE, "candidates": [1, 4]}, "protocol": {"seed": 3}}
    with pytest.raises(StudyMismatchError) as error:
        a_record().check(a_study(), now)
    assert str(error.value) == (
        "study 'mine' was made with another search space (candidates: was [1, 2], is [1, 4]); "
        "another protocol (seed: was 0, is 3). Repeat its settings to resume it, or choose "
        "another study name"
    )


@pytest.mark.parametrize(
    ("part", "changed", "words"),
    [
        ("graph", {"nodes": 3}, "another graph (nodes: was None, is 3)"),
        ("model", {"class": "GAT"}, "another model (class: was None, is GAT)"),
        (
            "quantizer",
            {"rounding": "floor"},
            "another quantizer (rounding: was nearest, is floor)",
        ),
        ("finetuning", {"epochs": 1}, "another finetuning (epochs: was 30, is 1)"),
    ],
)
def test_every_part_of_a_fingerprint_counts(part, changed, words):
    record = a_record()
    record.check(a_study(), FINGERPRINT)
    with pytest.raises(StudyMismatchError) as error:
        record.check(a_study(), {**FINGERPRINT, part: changed})
    assert words in str(error.value)


def test_a_record_is_read_as_it_was_saved_and_knows_its_search_space():
    study = new_study()
    record = StudyRecord.of(study)
    assert record == StudyRecord.load(study)
    assert record.search_space.candidates == (1, 2, 4, 8)
    assert record.search_space.names[0] == "conv1/embedding/bucket0"
    assert record.granularity == "cwq+lwq+taq"


@pytest.mark.parametrize("edges", [["a"], "48", [8, 4], [4.5], None, 4, [float("nan")], [2**70]])
def test_a_record_with_damaged_degree_edges_is_told(edges):
    study = new_study()
    study.set_user_attr(RECORD_ATTR, {**study.user_attrs[RECORD_ATTR], "degree_edges": edges})
    with pytest.raises(StudyMismatchError, match="'hand-made': expected a record of this version"):
        StudyRecord.of(study)


def test_a_study_of_another_objective_has_none():
    study = a_study()
    assert StudyRecord.load(study) is None
    with pytest.raises(StudyNotFoundError, match="'mine': expected a study of Quantization"):
        StudyRecord.of(study)
