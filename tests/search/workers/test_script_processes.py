"""``run_trials``: a user's script measures its trials in several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.search.workers.script_processes import run_trials
from sgquant_optuna.study.loading import load_study

SCRIPT = """
import sys
import torch
from torch_geometric.nn import SAGEConv
import sgquant_optuna as sgq
from tests.conftest import make_graph

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = SAGEConv(12, 8), SAGEConv(8, 3)

    def forward(self, features, links):
        return self.second(self.first(features, links).relu(), links)

def call(model, data):
    return model(data.x, data.edge_index)

def main():
    torch.manual_seed(0)
    objective = sgq.QuantizationObjective(
        Mine(), make_graph(), granularity="lwq", max_drop=100.0, forward=call,
        finetuning=sgq.TrainingConfig(epochs=EPOCHS),
    )
    study = sgq.create_study(objective, storage="study.db", study_name="mine", seed=0)
    sgq.run_trials(study, objective, n_trials=TRIALS, n_jobs=2)
    print("done", len(study.get_trials(states=(1,))))

"""
GUARDED = SCRIPT + 'if __name__ == "__main__":\n    main()\n'


def start(folder: Path, script: str, *, trials: int, epochs: int) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(script.replace("TRIALS", str(trials)).replace("EPOCHS", str(epochs)))
    root = str(Path(__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(folder: Path, *states: TrialState) -> set[int]:
    try:
        study = load_study("mine", storage=folder / "study.db")
    except Exception:  # not made yet
        return set()
    names = [t.user_attrs.get("worker") for t in study.get_trials(states=states)]
    return {int(name.rpartition(":")[2]) for name in names if name}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def choices(folder: Path) -> list[tuple[tuple[str, int], ...]]:
    study = load_study("mine", storage=folder / "study.db")
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return [tuple(sorted(trial.params.items())) for trial in complete]


def test_a_killed_process_is_replaced_and_the_number_is_exact(tmp_path):
    script = start(tmp_path, GUARDED, trials=9, epochs=150)
    victim = next(iter(wait_for(lambda: workers_of(tmp_path, TrialState.RUNNING))))
    assert victim != script.pid
    os.kill(victim, signal.SIGKILL)
    out, err = script.communicate(timeout=200)
    assert script.returncode == 0, err
    assert out == "done 9\n"
    assert len(set(choices(tmp_path))) == len(choices(tmp_path)) == 9
    assert f"worker process {victim} ended by SIGKILL; restart 1 of 3" in err


def test_ctrl_c_gives_back_the_trials_and_ends_all_processes(tmp_path):
    script = start(
        tmp_path, GUARDED.replace("n_jobs=2", "n_jobs=2, grace=0"), trials=9, epochs=900
    )
    workers = wait_for(lambda: workers_of(tmp_path, TrialState.RUNNING))
    script.send_signal(signal.SIGINT)
    _, err = script.communicate(timeout=60)
    assert script.returncode != 0 and "KeyboardInterrupt" in err
    assert not workers_of(tmp_path, TrialState.RUNNING), err
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_a_script_without_the_guard_is_told_of_it(tmp_path):
    script = start(tmp_path, f"{SCRIPT}main()\n", trials=2, epochs=1)
    out, err = script.communicate(timeout=100)
    assert (script.returncode, out) == (1, "")
    told = err.strip().splitlines()[-1]
    assert told.startswith("ValueError: run_trials: its processes ended while they imported")
    assert 'put its calls under if __name__ == "__main__":' in told


def test_one_process_measures_the_trials_itself(objective, tmp_path):
    study = create_study(objective, storage=tmp_path / "s.db", study_name="mine", seed=0)
    run_trials(study, objective, n_trials=2)
    run_trials(study, objective, n_trials=3)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    run_trials(study, objective, n_trials=5, timeout=1e-9)
    assert len(study.trials) == 3


def test_what_cannot_be_shared_is_refused_in_a_line(objective, tmp_path):
    in_memory = optuna.create_study(directions=objective.directions)
    with pytest.raises(ValueError, match="expected a study in a database, got one in memory"):
        run_trials(in_memory, objective, n_trials=2, n_jobs=2)
    study = create_study(objective, storage=tmp_path / "s.db", study_name="mine", seed=0)
    with pytest.raises(ValueError, match="at least 1, got 2 and 0"):
        run_trials(study, objective, n_trials=2, n_jobs=0)
    objective.forward = lambda model, data: model(data.x, data.edge_index)
    with pytest.raises(TypeError, match="at the top level of a file") as told:
        run_trials(study, objective, n_trials=2, n_jobs=2)
    assert "\n" not in str(told.value)
