"""Values of a study in its storage: compressed if long, and told if they are not ours."""

import json

import optuna
import pytest

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.storage import open_storage
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.report import report
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.stored_values import compact, expanded, finite, stored_mapping
from sgquant_optuna.study.trial_result import TrialResult
from tests.databases import BACKENDS, fresh_database
from tests.hand_made import layout, measured, new_study

LONG = {f"conv{number}/embedding": 8 for number in range(2000)}


def test_short_values_stay_readable_and_long_ones_get_short():
    assert compact({"a": [1, 2]}) == {"a": [1, 2]}
    stored = compact(LONG)
    assert expanded(stored) == LONG
    assert len(json.dumps(stored)) < len(json.dumps(LONG)) / 4
    assert compact(stored) == stored  # once is enough


@pytest.mark.parametrize("damaged", ["", "%%", "eJw=", 3, None, "eJwLAAAgACA="])
def test_a_damaged_compressed_value_is_told(damaged):
    with pytest.raises(ValueError, match="compressed value: it is damaged"):
        expanded({"zlib+base64": damaged})


def test_a_compressed_value_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("sgquant_optuna.study.stored_values._LARGEST", 1000)
    with pytest.raises(ValueError, match="cut, or too long"):
        expanded(compact(LONG))


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), [1.0]])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(TypeError, match="flips: expected a finite number"):
        finite(value, "flips")


@pytest.mark.parametrize("value", [3, "text", [1], True, {"zlib+base64": "x"}])
def test_a_value_that_is_no_object_is_told_with_the_study(value):
    study = optuna.create_study(study_name="s")
    study.set_user_attr("sgquant:plan", value)
    with pytest.raises(StudyMismatchError, match="study 's': expected settings of this version"):
        stored_mapping(study, "sgquant:plan", what="settings")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_2000_parameters_fits_every_database(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        deep = layout(layers=1000)
        storage = open_storage(url)
        study = new_study(storage, name="deep", made=deep, planned=2)
        SearchPlan(n_trials=2).save(study)
        study.add_trial(measured([4] * 2000, 0.1, made=deep))
        (row,) = trial_rows(study, TrialResult)
        assert report(study).bits == row.result.bit_widths
        assert len(row.result.bit_widths) == 2000
        # What a killed worker ran is queued again with all its parameters.
        stale = storage.get_heartbeat_stale_trial_callback()
        stale(study, study.trials[0])
        queued = storage.get_trial(2)
        assert queued.params == study.trials[0].params
