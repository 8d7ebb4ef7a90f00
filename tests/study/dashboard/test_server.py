import io
import json

import optuna
import pytest
from optuna_dashboard import save_note

from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.study.dashboard.server import dashboard_app
from tests.hand_made import final_result, measured, new_study


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def get(storage, tmp_path):
    app = dashboard_app(storage, open_artifacts(tmp_path / "files", storage_url=None))

    def call(path):
        answer = {}
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "after=0",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
        }
        body = app(environ, lambda status, *rest: answer.update(status=status))
        return int(answer["status"].split()[0]), b"".join(body)

    return call


def detail(get, study):
    status, body = get(f"/api/studies/{study._study_id}")
    assert status == 200
    return json.loads(body)


def best(told):
    return [trial["number"] for trial in told["best_trials"]]


def constraints(told):
    return [trial["constraints"] for trial in told["trials"]]


def test_no_infeasible_trial_is_best(storage, get):
    study = new_study(storage)
    study.add_trial(measured((1, 1, 1, 1), 9.0))
    told = detail(get, study)
    assert best(told) == [] and constraints(told) == [[8.5]]
    study = new_study(storage, name="another")  # the server keeps trials for a while
    study.add_trial(measured((1, 1, 1, 1), 9.0))
    study.add_trial(measured((8, 8, 8, 8), 0.0))
    told = detail(get, study)
    assert best(told) == [1] and constraints(told) == [[8.5], [-0.5]]
    assert told["objective_names"] == ["memory (bytes)"]


def test_the_best_trial_is_that_which_held_on_fresh_seeds(storage, get):
    study = new_study(storage)
    study.add_trial(measured((1, 1, 1, 1), 0.4))
    study.add_trial(measured((8, 8, 8, 8), 0.0))
    assert best(detail(get, study)) == [0]
    final_result((90.0, 90.0), (90.0, 89.0), others=(0,)).save(study)
    assert best(detail(get, study)) == [1]


def test_of_two_objectives_the_best_are_the_feasible_front(storage, get):
    study = new_study(storage, mode="pareto")
    for widths, drop in (((1,) * 4, 9.0), ((2,) * 4, 0.5), ((4,) * 4, 0.6), ((8,) * 4, 0.0)):
        study.add_trial(measured(widths, drop, mode="pareto"))
    told = detail(get, study)
    assert best(told) == [1, 3]
    assert [c[0] <= 0 for c in constraints(told)] == [False, True, False, True]


def test_constraints_of_any_study_are_shown(storage, get):
    def objective(trial):
        x = trial.suggest_int("x", 0, 9)
        trial.set_constraint("limit", 5 - x)
        return x

    study = optuna.create_study(storage=storage, sampler=optuna.samplers.BruteForceSampler(seed=0))
    study.optimize(objective, n_trials=10)
    told = detail(get, study)
    assert [trial["values"] for trial in told["best_trials"]] == [[5]]
    assert sorted(constraints(told)) == [[float(c)] for c in range(-4, 6)]


def test_every_measured_trial_has_a_note_unless_a_person_wrote_one(storage, get):
    study = new_study(storage)
    study.add_trial(measured((1, 1, 1, 1), 9.0, predicted={"constraint 0": 3.0}))
    study.add_trial(measured((8, 8, 8, 8), 0.25))
    save_note(study.ask(), "mine")
    notes = [trial["note"] for trial in detail(get, study)["trials"]]
    assert "9.00 points, limit 0.5 points: **not feasible**" in notes[0]["body"]
    assert "3.50 points" in notes[0]["body"]
    assert "0.25 points, limit 0.5 points: feasible" in notes[1]["body"]
    assert notes[0]["version"] == 0
    assert notes[2]["body"] == "mine"


def test_a_file_that_is_not_in_the_store_is_not_found(storage, get):
    study = new_study(storage)
    key = "artifacts:00000000-0000-0000-0000-000000000000"
    described = {"artifact_id": key[10:], "filename": "x.png", "mimetype": "image/png"}
    storage.set_study_system_attr(study._study_id, key, json.dumps(described))
    status, body = get(f"/artifacts/{study._study_id}/{key[10:]}")
    assert status == 404 and b"not in the artifact store" in body


def test_an_unknown_study_is_not_found(get):
    assert get("/api/studies/99")[0] == 404
