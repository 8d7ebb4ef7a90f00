"""Values that another program may have written under our keys, and who reads them."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from hypothesis import strategies as st
from optuna.trial import TrialState

from sgquant_optuna.cli import main
from sgquant_optuna.sampler import SGQuantSampler, best_for
from sgquant_optuna.sampler.explain import calibration
from sgquant_optuna.sampler.settled import has_settled
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.storage.attributes import (
    ARTIFACT_PREFIX,
    ASKED_ATTR,
    BEAT_ATTR,
    BIRTH_ATTR,
    CONSTRAINTS_ATTR,
    COPY_OF_ATTR,
    EARLY_STOP_ATTR,
    FINAL_ATTR,
    LEASE_PREFIX,
    PAGE_ATTR,
    PLAN_ATTR,
    PROCESS_ATTR,
    RECORD_ATTR,
    SURPLUS_ATTR,
    WEIGHTS_ATTR,
    WORKER_ATTR,
)
from sgquant_optuna.storage.processes import is_signed_here, is_signer_gone
from sgquant_optuna.study.dashboard.page import write_page
from sgquant_optuna.study.loading import load_study
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.trial_result import TrialResult
from tests.hand_made import final_result, measured, new_study

STUDY_KEYS = (PLAN_ATTR, RECORD_ATTR, FINAL_ATTR, WEIGHTS_ATTR, EARLY_STOP_ATTR)
STUDY_SYSTEM_KEYS = (PAGE_ATTR, f"{LEASE_PREFIX}final report", f"{ARTIFACT_PREFIX}x")
TRIAL_KEYS = (*TrialResult.names(), WORKER_ATTR, SURPLUS_ATTR, "predicted")
TRIAL_SYSTEM_KEYS = (
    *(BIRTH_ATTR, ASKED_ATTR, BEAT_ATTR, PROCESS_ATTR, "sgquant:claim", CONSTRAINTS_ATTR),
    *("fixed_params", COPY_OF_ATTR),
)
KEYS = [
    *(("study", key) for key in STUDY_KEYS),
    *(("study system", key) for key in STUDY_SYSTEM_KEYS),
    *(("trial", key) for key in TRIAL_KEYS),
    *(("trial system", key) for key in TRIAL_SYSTEM_KEYS),
]
WRONG = (
    *(None, True, -1, 0, 7, 2**70, 0.5, float("nan"), float("inf"), "", "text", "{", "[1, 2]"),
    *([], [1], [None, None], ["a", "b"], [1, "x"], {}, {"version": 3}, {"x": 1}, {"x": [{}]}),
    *({"zlib+base64": "eJw="}, {"zlib+base64": 3}),
)


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON, with the words that our own values use."""
    words = st.sampled_from(["version", "expected", "lost", "groups", "round", "index", "x", ""])
    leaves = st.one_of(
        st.sampled_from(WRONG),
        st.integers(-(2**40), 2**40),
        st.floats(),
        st.text(max_size=8),
    )
    return st.recursive(
        leaves,
        lambda inside: st.one_of(
            st.lists(inside, max_size=4), st.dictionaries(words, inside, max_size=4)
        ),
        max_leaves=8,
    )


@st.composite
def altered(draw: Any, value: Any) -> Any:
    """A stored value of which one part is another; or another value altogether."""
    if not isinstance(value, dict | list) or not value or draw(st.booleans()):
        return draw(json_values())
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    at = draw(st.sampled_from(places))
    changed = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(changed, dict) and draw(st.integers(0, 5)) == 0:
        del changed[at]
    else:
        changed[at] = draw(altered(value[at]))
    return changed


def small_study(folder: Path) -> optuna.Study:
    """A finished study of ours in ``s.db``, with a waiting and a running trial."""
    storage = open_storage(folder / "s.db")
    study = new_study(storage, name="s", planned=6)
    SearchPlan(n_trials=6).save(study)
    for number, widths in enumerate(((1, 1, 1, 1), (4, 4, 4, 4), (8, 4, 2, 1), (8, 8, 8, 8))):
        study.add_trial(measured(widths, number / 10, worker=f"host:{number}"))
    final_result((90.0, 91.0), (89.0, 90.5)).save(study)
    study.enqueue_trial(dict(study.trials[0].params))
    storage.create_new_trial(study._study_id)
    return study


def copied(folder: Path, to: Path) -> Path:
    """Copy ``s.db`` with what its log holds into another folder; return that."""
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as database:
        database.execute("VACUUM INTO ?", (str(to / "s.db"),))
    return to


_TABLES = {
    "study": ("study_user_attributes", "study_id", (1,)),
    "study system": ("study_system_attributes", "study_id", (1,)),
    "trial": ("trial_user_attributes", "trial_id", (3, 5, 6)),  # finished, waiting, running
    "trial system": ("trial_system_attributes", "trial_id", (3, 5, 6)),
}


def put(folder: Path, where: str, key: str, value: Any) -> None:
    """Write a value past Optuna, as another program could, to the study or to some trials."""
    table, column, owners = _TABLES[where]
    if key == "fixed_params":  # of a trial that waits, Optuna itself reads it
        owners = owners[:1]
    with contextlib.closing(sqlite3.connect(folder / "s.db")) as database, database:
        for owner in owners:
            database.execute(f"DELETE FROM {table} WHERE {column} = ? AND key = ?", (owner, key))
            database.execute(
                f"INSERT INTO {table} ({column}, key, value_json) VALUES (?, ?, ?)",
                (owner, key, json.dumps(value)),
            )


def command(*words: str) -> Callable[[Path], None]:
    """Return a reader that runs a command; its errors are one line and an exit code."""

    def run(folder: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main([*words, "--storage", str(folder / "s.db")])
        except SystemExit as stop:
            if stop.code not in (0, None):
                text = err.getvalue()
                assert stop.code in (1, 2), text
                assert text.count("error: ") == 1, text
                assert "Traceback" not in text, text

    return run


def _sampler(folder: Path) -> None:
    storage = open_storage(folder / "s.db")
    study = optuna.load_study(study_name="s", storage=storage, sampler=SGQuantSampler(seed=0))
    trial = study.ask()
    for name, distribution in study.trials[0].distributions.items():
        trial._suggest(name, distribution)
    study.tell(trial, state=TrialState.FAIL)
    has_settled(study.trials, 2)
    calibration(study, "objective 0")
    best_for(study, known_objective=lambda params: 1.0, budget_bytes=2.0)


def _workers(folder: Path) -> None:
    study = load_study("s", storage=folder / "s.db")
    for trial in study.trials:
        is_signer_gone(trial)
        is_signed_here(trial)
    optuna.storages.fail_stale_trials(study)


def _page(folder: Path) -> None:
    study = load_study("s", storage=folder / "s.db")
    write_page(study, open_artifacts(storage_url=folder / "s.db"))


READERS: dict[str, Callable[[Path], None]] = {
    "list": command("list"),
    "status": command("status", "s"),
    "report": command("report", "s"),
    "report csv": command("report", "s", "--format", "csv"),
    "report json": command("report", "s", "--format", "json"),
    "report of a budget": command("report", "s", "--budget", "50kB"),
    "export": command("export", "s", "--assignment-only", "--out", "-"),
    "worker": command("worker", "s", "--n-trials", "1", "--quiet"),
    "sampler": _sampler,
    "workers": _workers,
    "page": _page,
}


def read_by_all(folder: Path, names: tuple[str, ...] = tuple(READERS)) -> dict[str, BaseException]:
    """Let readers read a study; return what came out of each that is none of our errors."""
    from sgquant_optuna.exceptions import SgquantError

    raised: dict[str, BaseException] = {}
    for name in names:
        try:
            READERS[name](folder)
        except SgquantError:
            pass
        except Exception as error:
            raised[name] = error
    sys.stderr.flush()
    return raised
