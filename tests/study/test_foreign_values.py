"""What another program wrote under our keys is told in a line, and stops nothing else."""

import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.study.loading import load_study
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.trial_result import TrialScore
from tests.foreign_values import KEYS, WRONG, altered, copied, put, read_by_all, small_study

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning"),
]
FAST = ("status", "report csv", "sampler", "workers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, small_study(folder)


@pytest.mark.parametrize("number", range(len(KEYS)), ids=[key for _, key in KEYS])
def test_no_reader_raises_what_is_not_ours(number, made, tmp_path):
    where, key = KEYS[number]
    # Each key gets another of the wrong values; benchmarks/fuzz.py tries all of them.
    put(copied(made[0], tmp_path), where, key, WRONG[number % len(WRONG)])
    assert read_by_all(tmp_path, FAST) == {}


def test_altered_values_raise_nothing_else_either(made):
    stored = {"study": made[1].user_attrs, "trial": made[1].trials[2].user_attrs}
    places = st.sampled_from([(w, k) for w, k in KEYS if k in stored.get(w, {})])
    changes = places.flatmap(lambda at: st.tuples(st.just(at), altered(stored[at[0]][at[1]])))

    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(changes)
    def check(change):
        (where, key), value = change
        with tempfile.TemporaryDirectory() as name:
            folder = copied(made[0], Path(name))
            put(folder, where, key, value)
            assert read_by_all(folder, ("report",)) == {}

    check()


def test_a_trial_that_cannot_be_read_is_left_out_and_told_once(made, tmp_path, caplog):
    put(copied(made[0], tmp_path), "trial", "flips", "many")
    study = load_study("s", storage=tmp_path / "s.db")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rows = trial_rows(study, TrialScore)
    assert [row.result is None for row in rows[:4]] == [False, False, True, False]
    told = [record.message for record in caplog.records]
    assert told == [
        "trial 2: its attributes are not ours, going on without it (flips: expected a finite "
        "number, got 'many')"
    ]
