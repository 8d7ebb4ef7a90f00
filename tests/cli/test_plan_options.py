from dataclasses import replace

from sgquant_optuna.cli.plan_options import plan_of_options
from sgquant_optuna.graph.training_config import FINETUNING, TrainingConfig, paper_training


def test_the_training_is_that_of_model_and_data_set():
    plan = plan_of_options(model="gcn", dataset="cora")
    usual = paper_training("gcn", "Cora")
    assert (plan.normalize_features, plan.training) == (True, usual.training)


def test_the_digits_are_trained_as_ever():
    plan = plan_of_options()
    assert (plan.model, plan.dataset, plan.normalize_features) == ("gcn", "digits", False)
    assert (plan.training, plan.finetuning) == (TrainingConfig(), FINETUNING)


def test_each_setting_of_the_training_has_a_flag():
    chosen = {
        "epochs": 7,
        "patience": 6,
        "learning_rate": 0.5,
        "weight_decay": 0.25,
        "decayed_layers": "first",
    }
    flags = {("training_" * (name == "patience")) + name: value for name, value in chosen.items()}
    plan = plan_of_options(dataset="Cora", normalize_features=False, finetune_epochs=3, **flags)
    assert not plan.normalize_features
    assert plan.training == TrainingConfig(**chosen)
    assert plan.finetuning == replace(
        FINETUNING, epochs=3, weight_decay=0.25, decayed_layers="first"
    )
