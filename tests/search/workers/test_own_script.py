"""The pattern of docs/workers.md: one script of the user's own model, started twice."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from optuna.trial import TrialState

from sgquant_optuna.study.loading import load_study

DOCS = Path(__file__).parents[3] / "docs" / "workers.md"
TOTAL = 16
# So that a process which starts late finds trials left.
TOGETHER = """
import os, pathlib, time
pathlib.Path(f"ready{os.getpid()}").touch()
while len(list(pathlib.Path().glob("ready*"))) < 2:
    time.sleep(0.01)
"""


def script():
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL).group(1)
    assert code.count("TRIALS = 60") == 1
    before, found, after = code.partition("study = sgq")
    assert found
    return f"{before.replace('TRIALS = 60', f'TRIALS = {TOTAL}')}{TOGETHER}{found}{after}"


def test_two_processes_share_a_study_of_the_users_own_model(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script()],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    study = load_study("mine", storage=tmp_path / "study.db")
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert TOTAL <= len(complete) <= TOTAL + 1  # both may have begun the last one
    choices = Counter(tuple(sorted(trial.params.items())) for trial in complete)
    assert max(choices.values()) == 1
    assert len({trial.user_attrs["worker"] for trial in complete}) == 2
