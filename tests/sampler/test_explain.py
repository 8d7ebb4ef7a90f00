"""Explanations of the cost model: predictions, calibration and sensitivity."""

import numpy as np
import optuna
import pytest

from sgquant_optuna.sampler import calibration, sensitivity
from tests.sampler.toy_study import SCALES, WIDTHS


def test_predictions_are_stored_when_a_trial_is_suggested(study):
    assert "predicted" not in study.trials[1].user_attrs  # of the ladder
    predicted = study.trials[10].user_attrs["predicted"]
    assert set(predicted) == {"constraint 0", "constraint 0 deviation", "feasible", "gain"}
    assert 0 <= predicted["feasible"] <= 1


def test_calibration_pairs_predictions_with_measurements(study):
    pairs = calibration(study, "constraint 0")
    assert pairs.numbers.tolist() == list(range(2, 60))
    np.testing.assert_allclose(pairs.measured[0], study.trials[2].constraints["0"])
    error = np.abs(pairs.predicted - pairs.measured)
    assert np.median(error) < 0.5 * np.median(np.abs(pairs.measured - pairs.measured.mean()))
    assert pairs.coverage > 0.6


def test_calibration_of_a_study_without_predictions_is_empty():
    pairs = calibration(optuna.create_study(), "objective 0")
    assert len(pairs.numbers) == 0
    assert np.isnan(pairs.coverage)


def test_sensitivity_orders_sites_by_what_they_cost(study):
    entries = sensitivity(study, "constraint 0")
    names = [entry.name for entry in entries]
    most = f"site{int(np.argmax(SCALES))}"
    least = f"site{int(np.argmin(SCALES))}"
    assert names.index(most) < names.index(least)
    assert entries[0].choices == WIDTHS
    assert entries[0].expected[0] > entries[0].expected[-1]  # fewer bits, larger drop


@pytest.mark.parametrize("target", ["drop", "objective x", "constraint"])
def test_unknown_targets_are_refused(study, target):
    with pytest.raises(ValueError, match="target: expected 'objective 0' or 'constraint 0'"):
        calibration(study, target)
