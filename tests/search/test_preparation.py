import shutil
import threading

import optuna
import pytest
import torch

from sgquant_optuna.exceptions import ArtifactError, StudyMismatchError
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.search import preparation
from sgquant_optuna.search.trained_models import train_models
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.attributes import WEIGHTS_ATTR
from sgquant_optuna.study.plan import SearchPlan
from tests.small_search import a_plan, join, prepare


@pytest.fixture
def no_training(monkeypatch):
    def refuse(plan, data, own):
        raise AssertionError("trained again")

    monkeypatch.setattr(preparation, "train_models", refuse)


def weights(prepared):
    return prepared.objective.fingerprint["weights"]


def test_a_worker_takes_the_trained_models_and_the_reference_from_the_study(
    folder, no_training, monkeypatch
):
    joined = join(folder)
    assert joined.plan.n_trials == 4
    record = joined.study.user_attrs["sgquant:record"]
    assert weights(joined) == record["fingerprint"]["weights"]
    monkeypatch.setattr(type(joined.objective), "measure", None)  # not measured again
    assert joined.objective.full_precision_accuracy == record["full_precision_accuracy"]


def test_resuming_does_not_train_again_and_may_ask_for_more_trials(folder, no_training):
    resumed = prepare(folder, a_plan(n_trials=9))
    assert SearchPlan.load(resumed.study).n_trials == 9


def test_without_the_artifact_a_worker_trains_the_same_models_itself(folder, caplog):
    shutil.rmtree(folder / "artifacts")
    joined = join(folder)
    assert weights(joined) == joined.study.user_attrs["sgquant:record"]["fingerprint"]["weights"]
    assert "training them again here" in caplog.text


def test_models_that_come_out_otherwise_are_refused_by_name(folder, monkeypatch):
    shutil.rmtree(folder / "artifacts")
    monkeypatch.setattr(
        preparation,
        "train_models",
        # As if this machine computed otherwise.
        lambda plan, data, own: train_models(a_plan(seed=7), data),
    )
    with pytest.raises(StudyMismatchError, match="another model weights"):
        join(folder)


def test_an_altered_artifact_is_refused(folder):
    (file,) = (folder / "artifacts").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum differs"):
        join(folder)


def test_an_artifact_of_another_model_is_refused(folder):
    study = join(folder).study
    known = study.user_attrs[WEIGHTS_ATTR]
    plan = a_plan(model="gat")
    plan.save(study)
    with pytest.raises(ArtifactError, match="expected weights of gat"):
        join(folder)
    study.set_user_attr(WEIGHTS_ATTR, {**known, "artifact_id": "../s.db"})
    with pytest.raises(StudyMismatchError):  # nothing outside the folder is read; trained here
        join(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": TrainingConfig(epochs=3)}, r"training epochs: was 2, is 3"),
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"normalize_features": True}, "normalize_features: was False, is True"),
        ({"models": 1}, "models: was 2, is 1"),
        ({"candidates": (1, 8)}, "another search space"),
    ],
)
def test_another_plan_is_refused_by_name_and_not_saved(change, message, folder):
    with pytest.raises(StudyMismatchError, match=message):
        prepare(folder, a_plan(**change))
    study = optuna.load_study(study_name="gcn-digits-lwq", storage=open_storage(folder / "s.db"))
    assert not SearchPlan.load(study).trains_otherwise(a_plan())
    assert SearchPlan.load(study).candidates == (1, 2, 4, 8)


def test_two_that_start_at_once_train_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        preparation,
        "train_models",
        lambda plan, data, own: trained.append(1) or train_models(plan, data),
    )
    made = []

    def start():
        made.append(prepare(tmp_path, a_plan(models=1)))

    # Two threads of one process would share torch's random state while they train; one trains.
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 2
    assert len(trained) == 1
    assert weights(made[0]) == weights(made[1])
    assert len(list((tmp_path / "artifacts").iterdir())) == 1


def test_a_study_whose_maker_was_killed_is_prepared_by_the_next(tmp_path, monkeypatch):
    def killed(plan, data, own):
        raise SystemExit  # the plan is saved by now, nothing else

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "train_models", killed)
        with pytest.raises(SystemExit):
            prepare(tmp_path, a_plan())
    joined = join(tmp_path)
    assert torch.isfinite(torch.tensor(weights(joined))).all()
    assert joined.study.user_attrs["sgquant:record"]
