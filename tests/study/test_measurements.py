import numpy as np
import pytest

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.study.figures import figures
from sgquant_optuna.study.measurements import expected_best, measurements
from tests.hand_made import final_result, measured, new_study

PNG = b"\x89PNG\r\n"


def study_of(*trials, mode="constrained"):
    study = new_study(mode=mode)
    for widths, drop in trials:
        study.add_trial(measured(widths, drop, mode=mode))
    return study


def test_the_expected_best_of_random_draws_by_hand():
    # Half of the draws give 4, half give 2, and the 4 counts in every second draw only.
    expected = expected_best(np.array([4.0, 2.0]), np.array([0.5, 1.0]), 2)
    assert expected[0] == pytest.approx(0.25 * 4 + 0.5 * 2 + 0.25 * 1)
    # Two draws: no 4 in (3/4)^2, nothing at all in (1/4)^2.
    assert expected[1] == pytest.approx((1 - 9 / 16) * 4 + (9 / 16 - 1 / 16) * 2 + 1 / 16)


def test_the_frontier_holds_what_nothing_beats():
    found = measurements(
        study_of(((8,) * 4, 0.0), ((4,) * 4, 0.3), ((2,) * 4, 0.3), ((1,) * 4, 5.0))
    )
    assert found.numbers[found.frontier()].tolist() == [3, 2, 0]
    assert found.is_feasible.tolist() == [True, True, True, False]


def test_the_best_saving_counts_feasible_trials_only():
    found = measurements(study_of(((1,) * 4, 5.0), ((8,) * 4, 0.0), ((4,) * 4, 0.5)))
    best = found.best_savings()
    assert np.isnan(best[0])
    assert best[1:].tolist() == found.savings[1:].tolist()


def test_predictions_of_both_modes_are_drops_in_points():
    study = new_study()
    predicted = {"constraint 0": -0.4, "constraint 0 deviation": 0.1}
    study.add_trial(measured((8,) * 4, 0.2, predicted=predicted))
    found = measurements(study).calibration()
    assert found.predicted.tolist() == pytest.approx([0.1])
    assert found.measured.tolist() == [0.2]
    assert found.coverage == 1.0
    study = new_study(mode="pareto")
    predicted = {"objective 1": 0.3, "objective 1 deviation": 0.1}
    study.add_trial(measured((8,) * 4, 0.2, mode="pareto", predicted=predicted))
    assert measurements(study).calibration().predicted.tolist() == [0.3]


def test_with_a_budget_the_least_drop_within_it_counts():
    study = new_study(budget=70_000.0)
    predicted = {"objective 0": 0.3, "objective 0 deviation": 0.1}
    for widths, drop in (((8,) * 4, 0.0), ((4,) * 4, 0.4), ((2,) * 4, 0.6)):
        study.add_trial(measured(widths, drop, budget=70_000.0, predicted=predicted))
    found = measurements(study)
    assert found.is_feasible.tolist() == [False, True, True]
    assert found.chosen.number == 1
    assert np.isnan(found.least_drops()[0]) and found.least_drops()[1:].tolist() == [0.4, 0.4]
    assert found.calibration().predicted.tolist() == [0.3] * 3
    assert sum(entry.span for entry in found.sensitivity()) > 0
    drawn = figures(found)
    assert set(drawn) == {"front", "bits", "least_drop", "sensitivity", "cost_model"}
    assert all(png.startswith(PNG) for _, png in drawn.values())


def additive_study(mode="constrained"):
    """Only the first site matters: 3 points at one bit."""
    rng = np.random.default_rng(0)
    trials = [tuple(int(w) for w in rng.choice((1, 2, 4, 8), 4)) for _ in range(30)]
    return study_of(*((w, 3.0 if w[0] == 1 else 0.1) for w in trials), mode=mode)


def test_sensitivity_finds_the_site_that_matters():
    first = measurements(additive_study()).sensitivity()[0]
    assert first.name == "conv1/embedding/bucket0"
    assert first.choices == (1, 2, 4, 8)
    assert first.expected[0] == pytest.approx(3.0, abs=0.5)
    assert first.expected[3] == pytest.approx(0.1, abs=0.2)


def test_the_random_reference_rises_and_stays_below_the_best_possible():
    found = measurements(additive_study())
    reference = found.random_reference()
    assert len(reference) == 30
    assert (np.diff(reference) >= 0).all()
    assert 1 < reference[0] < reference[-1] < 32


@pytest.mark.parametrize("mode", ["constrained", "pareto"])
def test_every_figure_is_drawn(mode):
    study = additive_study(mode)
    key = "constraint 0" if mode == "constrained" else "objective 1"
    for _ in range(2):
        study.add_trial(measured((8,) * 4, 0.0, mode=mode, predicted={key: 0.1}))
    drawn = figures(measurements(study))
    assert set(drawn) == {"front", "bits", "best_saving", "sensitivity", "cost_model"}
    assert all(png.startswith(PNG) for _, png in drawn.values())


def test_one_infeasible_trial_is_drawn_with_what_there_is():
    drawn = figures(measurements(study_of(((1,) * 4, 50.0))))
    assert set(drawn) == {"front", "bits"}


def test_the_chosen_trial_is_that_which_held():
    study = study_of(((1,) * 4, 0.4), ((8,) * 4, 0.0))
    final_result((90.0, 90.0), (90.0, 89.0), others=(0,)).save(study)
    found = measurements(study)
    assert (found.chosen.number, found.held) == (1, True)


def test_nothing_to_draw_is_told():
    with pytest.raises(StudyNotFoundError, match="at least one finished trial"):
        measurements(new_study())
