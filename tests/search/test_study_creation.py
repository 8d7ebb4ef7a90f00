import optuna
import pytest

from sgquant_optuna.exceptions import StorageError, StudyMismatchError, StudyNotFoundError
from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.study.loading import load_study
from sgquant_optuna.study.reachable_sizes import ReachableSizes
from tests.conftest import FAST


def test_a_study_has_our_sampler_and_named_values(objective, tmp_path):
    study = create_study(objective, storage=tmp_path / "s.db", study_name="mine", seed=0)
    assert isinstance(study.sampler, SGQuantSampler)
    assert study.metric_names == ["memory (bytes)"]
    study.optimize(objective, n_trials=3)
    assert load_study("mine", storage=tmp_path / "s.db").trials[2].value > 0


def test_any_storage_and_any_sampler_will_do(objective):
    storage = optuna.storages.InMemoryStorage()
    sampler = optuna.samplers.TPESampler(seed=0)
    study = create_study(objective, storage=storage, sampler=sampler)
    study.optimize(objective, n_trials=2)
    assert study.sampler is sampler


def test_a_pareto_study_has_two_values(trained_gcn, graph, tmp_path):
    objective = QuantizationObjective(trained_gcn, graph, mode="pareto", finetuning=FAST)
    study = create_study(objective, storage=tmp_path / "s.db", seed=0)
    study.optimize(objective, n_trials=3)
    assert study.metric_names == ["memory (bytes)", "expected drop (points)"]
    assert study.best_trials


def test_a_study_with_a_budget_spends_no_training_above_it(trained_gcn, graph, tmp_path):
    objective = QuantizationObjective(
        trained_gcn, graph, mode="budget", budget_bytes=700, degree_edges=(2,), finetuning=FAST
    )
    study = create_study(objective, storage=tmp_path / "s.db", seed=0)
    study.optimize(objective, n_trials=15)
    assert study.metric_names == ["expected drop (points)"]
    used = [trial.user_attrs["memory_bytes"] for trial in study.trials]
    assert max(used) <= 700
    nearest = ReachableSizes(objective.layout, objective.search_space).largest_below(700)
    assert max(used) == nearest


def test_the_same_call_resumes(objective, tmp_path):
    for total in (2, 4):
        study = create_study(objective, storage=tmp_path / "s.db", study_name="mine", seed=0)
        study.optimize(objective, n_trials=2)
        assert len(study.trials) == total


def test_a_resumed_study_measures_the_choices_of_an_uninterrupted_one(objective, tmp_path):
    one = create_study(objective, storage=tmp_path / "one.db", study_name="s", seed=0)
    one.optimize(objective, n_trials=16)
    for trials in (3, 6, 7):
        two = create_study(objective, storage=tmp_path / "two.db", study_name="s", seed=0)
        two.optimize(objective, n_trials=trials)
    assert [t.params for t in two.trials] == [t.params for t in one.trials]
    assert [t.value for t in two.trials] == [t.value for t in one.trials]


def test_the_default_sampler_repeats_no_choice(objective, tmp_path):
    study = create_study(objective, storage=tmp_path / "s.db", seed=0)
    study.optimize(objective, n_trials=25)
    assert len({tuple(sorted(t.params.items())) for t in study.trials}) == 25


def test_a_study_of_another_protocol_is_refused_by_name(objective, trained_gcn, graph, tmp_path):
    create_study(objective, storage=tmp_path / "s.db", study_name="mine")
    other = QuantizationObjective(
        trained_gcn, graph, max_drop=1.0, confidence=0.9, degree_edges=(2,), finetuning=FAST
    )
    with pytest.raises(StudyMismatchError, match=r"'mine' .*protocol \(max_drop: was 5.0, is 1"):
        create_study(other, storage=tmp_path / "s.db", study_name="mine")


def test_a_single_study_needs_no_name(objective, tmp_path):
    create_study(objective, storage=tmp_path / "s.db", study_name="mine")
    assert load_study(storage=tmp_path / "s.db").study_name == "mine"
    create_study(objective, storage=tmp_path / "s.db", study_name="yours")
    with pytest.raises(StudyNotFoundError, match="expected one study name; .* mine, yours"):
        load_study(storage=tmp_path / "s.db")


def test_a_study_that_is_not_there_is_told(objective, tmp_path):
    create_study(objective, storage=tmp_path / "s.db", study_name="mine")
    with pytest.raises(StudyNotFoundError, match="expected study 'other'; the storage holds mine"):
        load_study("other", storage=tmp_path / "s.db")
    with pytest.raises(StorageError, match="no such file"):
        load_study("mine", storage=tmp_path / "none.db")
