"""The table of keys at the top of ``storage/attributes.py`` is whole and true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sgquant_optuna
from sgquant_optuna.sampler.claims import CLAIM_KEY
from sgquant_optuna.sampler.explain import PREDICTED_KEY
from sgquant_optuna.search.workers.worker import run_worker
from sgquant_optuna.storage import attributes
from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.study.dashboard.page import write_page
from sgquant_optuna.study.trial_result import TrialResult
from tests.small_search import join

PACKAGE = Path(sgquant_optuna.__file__).parent
QUERIES = PACKAGE.parent / "storage" / "queries"
FILES = sorted(PACKAGE.rglob("*.py"))
CONSTANTS = {
    name: value
    for name, value in vars(attributes).items()
    if name.isupper() and isinstance(value, str)
}
# Text before the part that differs from study to study.
PREFIXES = {"sgquant:lease:TASK": "sgquant:lease:", "artifacts:ID": "artifacts:"}


def rows():
    """Return key -> (files that write it, files that read it), section by section."""
    found, section = {}, None
    for line in (attributes.__doc__ or "").splitlines():
        if line.startswith(("Study,", "Trial,")):
            section = tuple(re.findall(r"(Study|Trial|user|system)\b", line)[:2])
            found[section] = {}
        if not line.startswith("| ") or line.startswith("| key"):
            continue
        key, _, *by = (cell.strip() for cell in line.strip("|").split("|"))
        if key:
            found[section][key] = [[], []]
        last = found[section][list(found[section])[-1]]
        for names, cell in zip(last, by, strict=True):
            names += [name for name in cell.split(", ") if name.strip(",")]
            names[:] = [name.strip(",") for name in names]
    return found


ROWS = rows()
KEYS = {key: by for section in ROWS.values() for key, by in section.items()}


def test_the_table_names_every_key_and_each_once():
    own = {PREFIXES.get(key, key) for key in KEYS}
    assert set(CONSTANTS.values()) | {CLAIM_KEY, PREDICTED_KEY} <= own
    assert sum(len(section) for section in ROWS.values()) == len(KEYS)
    assert set(list(ROWS["Trial", "user"])[:14]) == set(TrialResult.names())


def test_each_key_is_written_down_once():
    literals = {}
    for path in FILES:
        for literal in re.findall(r"""["'](sgquant:[^"']*)""", path.read_text()):
            literals.setdefault(literal, []).append(path.relative_to(PACKAGE).as_posix())
    assert literals.pop(CLAIM_KEY) == ["sampler/claims.py"]
    assert all(places == ["storage/attributes.py"] for places in literals.values()), literals


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_files_that_use_a_key_stand_in_its_row(name):
    using = {
        path.stem
        for path in FILES
        if path.parent.name != "storage" or path.stem not in ("attributes", "__init__")
        if any(
            isinstance(node, ast.Name) and node.id == name
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    (key,) = [key for key in KEYS if PREFIXES.get(key, key) == CONSTANTS[name]]
    written, read = KEYS[key]
    assert using and using <= {*written, *read}


def test_the_files_of_the_table_exist_and_the_queries_use_what_they_are_said_to():
    stems = [path.stem for path in FILES]
    for key, (written, read) in KEYS.items():
        for name in {*written, *read} - {"Optuna", "queries"}:
            assert stems.count(name) == 1, f"{key}: {name}"
    asked = set()
    for path in QUERIES.glob("*.sql"):
        asked |= set(re.findall(r"\.key = '([^']+)'", path.read_text()))
    assert asked == {key for key, (_, read) in KEYS.items() if "queries" in read}


def test_a_key_is_imported_without_a_database():
    code = "import sys, sgquant_optuna.storage.attributes; print('sqlalchemy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_key_of_a_real_study_stands_in_the_table(folder):
    joined = join(folder)
    run_worker(joined)
    write_page(joined.study, open_artifacts(storage_url=folder / "s.db"))
    study = joined.study
    found = {
        ("Study", "user"): set(study.user_attrs),
        ("Study", "system"): set(study._storage.get_study_system_attrs(study._study_id)),
        ("Trial", "user"): {key for trial in study.trials for key in trial.user_attrs},
        ("Trial", "system"): {key for trial in study.trials for key in trial.system_attrs},
    }
    known = {**PREFIXES, "dashboard:NAME": "dashboard:"}
    for section, keys in found.items():
        assert keys, section
        for key in keys:
            assert any(
                key == row or (row in known and key.startswith(known[row]))
                for row in ROWS[section]
            ), f"{section}: {key} is missing in the table"
