import optuna
import pytest

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.quantization.config import QuantizerConfig
from sgquant_optuna.search_plan import PLAN_ATTR, SearchPlan
from sgquant_optuna.training import TrainingConfig

SETTINGS = {
    "model": "gcn",
    "dataset": "digits",
    "n_trials": 3,
    "max_drop": 0.5,
    "mode": "constrained",
    "granularity": "lwq+taq",
    "bit_widths": (1, 8),
    "degree_edges": (9, 12),
}


def a_plan(**changes):
    return SearchPlan(
        **{
            **SETTINGS,
            "frozen": {"conv2": 8},
            "quantizer": QuantizerConfig.paper(),
            "training": TrainingConfig(epochs=2),
            "models": 2,
            **changes,
        }
    )


def test_a_study_gives_back_the_plan_that_was_saved_in_it():
    study = optuna.create_study()
    plan = a_plan()
    plan.save(study)
    loaded = SearchPlan.load(study)
    assert loaded.quantizer == plan.quantizer
    assert loaded.training == plan.training
    assert loaded.frozen == plan.frozen
    assert tuple(loaded.degree_edges) == plan.degree_edges


def test_two_workers_rebuild_the_same_objective_from_it():
    study = optuna.create_study()
    a_plan().save(study)
    prints = []
    for _ in range(2):
        plan = SearchPlan.load(study)
        data = plan.load_graph()
        prints.append(plan.objective(plan.train_all(data), data).fingerprint)
    assert prints[0] == prints[1]
    assert prints[0]["protocol"]["models"] == 2
    assert prints[0]["space"]["degree_edges"] == [9, 12]


def test_a_study_without_a_plan_or_of_another_version_is_refused():
    study = optuna.create_study(study_name="mine")
    with pytest.raises(StudyMismatchError, match="'mine'.*rebuild its objective in Python"):
        SearchPlan.load(study)
    study.set_user_attr(PLAN_ATTR, {"version": 99})
    with pytest.raises(StudyMismatchError, match="version 1, got 99"):
        SearchPlan.load(study)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(novelty=1),
        lambda plan: plan.pop("max_drop"),
        lambda plan: plan.update(model="transformer"),
        lambda plan: plan["quantizer"].update(novelty=1),
        lambda plan: plan.update(training=None),
    ],
)
def test_a_plan_of_the_same_number_with_other_fields_is_of_another_version(change):
    study = optuna.create_study(study_name="theirs")
    a_plan().save(study)
    plan = study.user_attrs[PLAN_ATTR]
    change(plan)
    study.set_user_attr(PLAN_ATTR, plan)
    with pytest.raises(StudyMismatchError, match="'theirs'.*the version of sgquant_optuna that"):
        SearchPlan.load(study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "mlp"}, "model: expected one of gcn, agnn, gat"),
        ({"max_drop": -1.0}, "max_drop"),
        ({"bit_widths": (9,)}, "bit width"),
        ({"granularity": "node"}, "granularity"),
    ],
)
def test_a_setting_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        a_plan(**change)
