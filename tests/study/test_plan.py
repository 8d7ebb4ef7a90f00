import optuna
import pytest

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.graph.fingerprint import graph_fingerprint
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.sampler.cost_model import DEFAULT_COST_MODEL
from sgquant_optuna.sampler.ranking import Acquisition
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.trained_models import load_plan_graph, train_models
from sgquant_optuna.storage.attributes import PLAN_ATTR
from sgquant_optuna.study.plan import SearchPlan

SETTINGS = {
    "model": "gcn",
    "dataset": "digits",
    "normalize_features": True,
    "n_trials": 3,
    "max_drop": 0.5,
    "mode": "constrained",
    "granularity": "lwq+taq",
    "candidates": (1, 8),
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
    plan = a_plan(patience=7, timeout=60.0)
    plan.save(study)
    assert SearchPlan.load(study) == plan


def test_a_plan_without_a_cost_model_gets_the_default_one():
    study = optuna.create_study()
    a_plan().save(study)
    stored = dict(study.user_attrs[PLAN_ATTR])
    del stored["cost_model"], stored["acquisition"]
    study.set_user_attr(PLAN_ATTR, stored)
    plan = SearchPlan.load(study)
    assert plan.cost_model == DEFAULT_COST_MODEL
    assert plan.acquisition == Acquisition.DEFAULT


def test_two_workers_rebuild_the_same_objective_from_it():
    study = optuna.create_study()
    a_plan().save(study)
    prints = []
    for _ in range(2):
        plan = SearchPlan.load(study)
        data = load_plan_graph(plan)
        objective = QuantizationObjective(train_models(plan, data), data, plan)
        prints.append(objective.fingerprint)
    assert prints[0] == prints[1]
    assert prints[0]["protocol"]["models"] == 2
    assert prints[0]["space"]["degree_edges"] == [9, 12]


def test_normalised_features_are_those_of_another_graph():
    raw, divided = (load_plan_graph(a_plan(normalize_features=one)) for one in (False, True))
    assert divided.x.sum(dim=1).numpy() == pytest.approx(1)
    assert divided.x[0].equal(raw.x[0] / raw.x[0].sum())
    assert divided.train_mask.equal(raw.train_mask)
    assert graph_fingerprint(raw, ["y"])["hash"] != graph_fingerprint(divided, ["y"])["hash"]


def test_a_study_without_a_plan_or_of_another_version_is_refused():
    study = optuna.create_study(study_name="mine")
    with pytest.raises(
        StudyMismatchError, match="'mine'.*made in Python.*run its own script again"
    ):
        SearchPlan.load(study)
    study.set_user_attr(PLAN_ATTR, {"version": 99})
    with pytest.raises(StudyMismatchError, match="version 3, got 99"):
        SearchPlan.load(study)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(novelty=1),
        lambda plan: plan.pop("training"),
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
        ({"candidates": (9,)}, "bit width"),
        ({"granularity": "node"}, "granularity"),
        ({"patience": -1}, "patience: expected trials, or 0 for never, got -1"),
        ({"timeout": 0}, "timeout: expected seconds above 0, got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        a_plan(**change)
