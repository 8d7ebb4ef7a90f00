"""A study of own models: one file of the user's for every command, and every mistake in it."""

import hashlib
import os
import re
import signal
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note

from sgquant_optuna.search import study_file
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.study.dashboard.page import write_page
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.study_reference import StudyReference
from tests.cli.test_commands import run
from tests.cli.test_worker import end, start, study_of, wait_for
from tests.databases import BACKENDS, fresh_database

GRAPH = """
import torch
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

import sgquant_optuna as sgq

print("imported")


def graph():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.eye(3)[y].repeat(1, 4) + torch.rand(60, 12, generator=generator)
    edges = torch.randint(60, (2, 400), generator=generator)
    edges = edges[:, y[edges[0]] == y[edges[1]]]
    part = torch.rand(60, generator=generator).argsort() % 3
    masks = {f"{name}_mask": part == i for i, name in enumerate(("train", "val", "test"))}
    return Data(x=x, edge_index=edges, y=y, **masks)


class Mine(torch.nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.first, self.second = SAGEConv(12, hidden), SAGEConv(hidden, 3)

    def forward(self, features, links):
        return self.second(self.first(features, links).relu(), links)


def call(model, data):
    return model(data.x, data.edge_index)
"""
STUDY = """

def study():
    print("called")
    return sgq.OwnStudy(data=graph(), model=lambda seed: Mine(), forward=call)
"""
PLAN = (
    *("--epochs", "5", "--finetune-epochs", "2", "--models", "2", "--final-seeds", "2"),
    *("--granularity", "lwq", "--max-drop", "50", "--patience", "0"),
)
STORAGE = ("--storage", "s.db")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def mine(tmp_path):
    """The file of a study; its folder is the working one."""
    return write(tmp_path)


def write(folder: Path, *, study: str = STUDY, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(GRAPH + study)
    return path


def search(capsys, *arguments, n_trials=3, command="search"):
    return run(capsys, command, *PLAN, "--n-trials", str(n_trials), *STORAGE, *arguments)


def test_one_file_serves_search_report_and_export(mine, capsys):
    code, out, err = search(capsys, "--study", "mine.py")
    assert code == 0, err
    assert re.match(r"\s+mine-lwq: bits of trial", out) and "fresh" in out or "trainings" in out
    assert "imported" not in out and "called" not in out  # the report has the output alone
    assert "imported" in err and "called" in err
    study = study_of(Path())
    plan = SearchPlan.load(study)
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert (plan.own.text, plan.own.sha256) == ("mine.py", digest)
    assert (plan.model, plan.dataset) == (None, None)
    assert study.user_attrs["sgquant:final"]["retrained"]
    assert "SAGEConv(12" not in str(study.user_attrs)  # no code
    assert run(capsys, "report", *STORAGE)[0] == 0
    code, out, err = run(capsys, "export", *STORAGE, "--study", "mine.py")
    assert code == 0, err
    told = re.search(r"trial ([\d.]+) %, measured again ([\d.]+) %", out)
    assert told[1] == told[2]


def test_the_same_command_resumes_and_an_edited_file_is_refused(mine, capsys):
    assert search(capsys, "--study", "mine.py")[0] == 0
    assert search(capsys, "--study", "mine.py", n_trials=4)[0] == 0
    assert len(study_of(Path()).trials) == 4
    mine.write_text(mine.read_text() + "\n# edited\n")
    code, _, err = search(capsys, "--study", "mine.py", n_trials=5)
    assert code == 2 and "study file: was study() of a file with SHA-256" in err


def test_a_worker_takes_the_models_that_init_trained(mine, tmp_path, capsys, monkeypatch):
    code, out, err = search(capsys, "--study", "mine.py", "--name", "ours", command="init")
    assert code == 0, err
    program, *arguments = out.splitlines()[1].split()
    assert arguments[-2:] == ["--study", str(mine)]
    monkeypatch.setattr(study_file, "fit", None)  # a second training would fail
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run(capsys, *arguments, "--n-trials", "1")[0] == 0
    monkeypatch.setenv("SGQUANT_STUDY", str(mine))
    assert run(capsys, "worker", "--storage", str(tmp_path / "s.db"))[0] == 0
    assert len(study_of(tmp_path).trials) == 3


def test_processes_get_the_file_too(mine, capsys):
    code, _, err = search(capsys, "--study", "mine.py", "--n-jobs", "2", n_trials=4)
    assert code == 0, err
    trials = study_of(Path()).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 4


@pytest.mark.skipif("postgresql" not in BACKENDS, reason="needs TEST_POSTGRESQL_URL")
def test_two_workers_finish_a_study_of_a_server_when_one_is_killed(mine, tmp_path, capsys):
    with fresh_database("postgresql", tmp_path) as url:
        storage = ("--storage", url, "--artifacts", str(tmp_path / "artifacts"))
        slow = ("--finetune-epochs", "100")
        words = ("init", *PLAN, *slow, "--n-trials", "8", "--study", "mine.py", *storage)
        assert run(capsys, *words)[0] == 0
        opened = open_storage(url)
        study = optuna.load_study(study_name=None, storage=opened)
        join = ("worker", "--study", "mine.py", *storage)
        workers = [start(tmp_path, *join) for _ in range(2)]

        def of(worker, *states):
            name = f":{worker.pid}"
            trials = study.get_trials(states=states or None)
            return [t for t in trials if t.user_attrs.get("worker", "").endswith(name)]

        wait_for(lambda: of(workers[0], TrialState.RUNNING))
        workers[0].send_signal(signal.SIGKILL)
        end(workers[0], -signal.SIGKILL)
        end(workers[1])
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        assert len(complete) == 8
        assert len({tuple(sorted(trial.params.items())) for trial in complete}) == 8
        opened.engine.dispose()


@pytest.mark.slow
def test_a_dask_cluster_runs_own_models(mine, tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    assert search(capsys, "--study", "mine.py", command="init")[0] == 0
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        code, _, err = run(
            capsys,
            *("worker", *STORAGE, "--study", "mine.py", "--engine", "dask", "--n-jobs", "2"),
            *("--scheduler", cluster.scheduler_address),
        )
    assert code == 0, err
    assert sum(t.state == TrialState.COMPLETE for t in study_of(tmp_path).trials) == 3


HETEROGENEOUS = """
import sgquant_optuna as sgq
from tests.typed_graphs import library, transformed


def study():
    data = library()
    papers = sgq.tasks.node_classification(node_type="paper")
    return sgq.OwnStudy(data=data, model=lambda seed: transformed(data), task=papers)
"""


def test_a_heterogeneous_study_goes_from_two_workers_to_an_evaluated_file(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the processes
    (tmp_path / "het.py").write_text(HETEROGENEOUS)
    given = ("--study", "het.py")
    code, out, err = run(
        capsys, "search", *given, *STORAGE, *PLAN, "--n-trials", "3", "--n-jobs", "2", "--quiet"
    )
    assert code == 0, err
    assert "bits of trial" in out and "conv1.paper" in out
    assert run(capsys, "export", *given, *STORAGE, "--out", "m.sgq")[0] == 0
    code, out, err = run(capsys, "evaluate", "m.sgq", *given, "--test", "--repeats", "1")
    assert code == 0, err
    assert "equal to the honest accounting" in " ".join(out.split())
    line = next(line for line in out.splitlines() if "test, opened now" in line)
    assert line.count("%") == 2


OWN_LOOP = """

def study():
    data = graph()

    def train(model, seed):
        sgq.fit(model, data, sgq.TrainingConfig(epochs=4), seed=seed, forward=call)
        print("trained", seed)

    return sgq.OwnStudy(data=data, model=lambda seed: Mine(), train=train, forward=call)
"""
TRAINED = """

def study():
    data = graph()
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(Mine())
        sgq.fit(models[-1], data, sgq.TrainingConfig(epochs=4), seed=seed, forward=call)
    return sgq.OwnStudy(data=data, model=models, forward=call)
"""


def test_a_training_loop_of_the_users_own_makes_all_models(tmp_path, capsys):
    write(tmp_path, study=OWN_LOOP)
    code, out, err = search(capsys, "--study", "mine.py")
    assert code == 0, err
    seeds = re.findall(r"trained (\d+)", err)
    assert seeds[:2] == ["0", "1"] and {"1000", "1001"} <= set(seeds)  # for the report, afresh
    assert "trained" not in out


def test_trained_models_are_not_trained_again(tmp_path, capsys):
    write(tmp_path, study=TRAINED)
    code, _, err = search(capsys, "--study", "mine.py", "--models", "5")
    assert code == 0, err
    study = study_of(Path())
    assert SearchPlan.load(study).models == 2
    assert not study.user_attrs["sgquant:final"]["retrained"]
    assert run(capsys, "export", *STORAGE, "--study", "mine.py")[0] == 0


def test_a_function_of_a_module_serves_as_well(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "ours"
    package.mkdir()
    (package / "__init__.py").touch()
    write(package, study=STUDY.replace("study()", "small()"), name="graphs.py")
    code, _, err = search(capsys, "--study", "ours.graphs:small")
    assert code == 0, err
    plan = SearchPlan.load(study_of(Path()))
    digest = hashlib.sha256((package / "graphs.py").read_bytes()).hexdigest()
    assert (plan.own.text, plan.own.sha256) == ("ours.graphs:small", digest)
    assert study_of(Path()).study_name == "graphs-small-lwq"


def test_a_database_makes_nothing_run(mine, tmp_path, capsys):
    """A worker is told by its own user, and what differs is refused before it runs."""
    assert search(capsys, "--study", "mine.py", n_trials=2)[0] == 0
    for command in ("worker", "export"):
        code, out, err = run(capsys, command, *STORAGE)
        assert (code, err.count("\n"), out) == (2, 1, "")
        assert "expected --study with study() of a file with SHA-256" in err
        assert "'mine.py'" in err and "SGQUANT_STUDY" in err
        write(tmp_path, study=STUDY + "\n# another\n", name="other.py")
        code, out, err = run(capsys, command, *STORAGE, "--study", "other.py")
        assert (code, err.count("\n"), out) == (2, 1, "")
        assert "got study() of a file with SHA-256" in err and "imported" not in err
    code, _, err = run(capsys, "worker", *STORAGE, "--n-jobs", "2", "--study", "other.py")
    assert (code, err.count("\n")) == (2, 1)


def test_a_study_of_a_named_model_takes_no_file(folder, mine, capsys):
    storage = ("--storage", str(folder / "s.db"))
    for words in ((), ("--n-jobs", "2")):
        code, out, err = run(capsys, "worker", *words, *storage, "--study", str(mine))
        assert (code, err.count("\n"), out) == (2, 1, "")
        assert "of gcn on digits: expected no --study" in err and str(mine) in err


def test_processes_of_a_named_model_ignore_the_variable(folder, mine, capsys, monkeypatch):
    monkeypatch.setenv("SGQUANT_STUDY", str(mine))
    words = ("--models", "1", "--epochs", "1", "--finetune-epochs", "1", "--n-trials", "2")
    code, _, err = run(capsys, "search", *words, "--n-jobs", "2", "--final-seeds", "2", *STORAGE)
    assert code == 0, err


def returning(model="lambda seed: Mine()", data="graph()", more=""):
    return f"def study(): return sgq.OwnStudy(data={data}, model={model}, forward=call{more})"


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            "import nothing_of_this",
            "import raised ModuleNotFoundError in line LINE of mine.py",
        ),
        ("1 / 0", "raised ZeroDivisionError in line LINE of mine.py: division by zero"),
        ("def study(:", "raised SyntaxError in line LINE of mine.py: invalid syntax"),
        ("raise SystemExit('bye')", "raised SystemExit in line LINE of mine.py: bye"),
        ("import time; time.sleep(99)", "expected an import of at most 0.3 s"),
        ("while True:\n try: graph()\n except Exception: pass", "an import of at most 0.3 s"),
        ("def other(): pass", "expected a function study() in mine.py, got none; its functions"),
        ("study = 3", "expected a function study() in mine.py, got a int"),
        ("def study(size): pass", "requires size; give each a default"),
        ("def study(*, size): pass", "requires size; give each a default"),
        ("def study(): pass", "to return a sgquant_optuna.OwnStudy, got None"),
        ("def study(): return Mine(), graph()", "sgquant_optuna.OwnStudy, got a tuple"),
        ("def study():\n    1 / 0", "study() raised ZeroDivisionError in line NEXT of mine.py"),
        (returning(data="[1]"), "graph: expected torch_geo"),
        (returning("3"), "trained modules, got"),
        (returning("[3]"), "one with a int"),
        (returning("[]"), "one with none"),
        (returning("lambda seed: 3"), "torch.nn.Module, got a int"),
        (returning("lambda seed: Mine"), "got the class Mine"),
        (returning("lambda seed: Mine(8 + seed)"), "another with seed 1"),
        (returning("lambda seed: 1 / 0"), "model with seed 0 raised Zero"),
        (returning(more=", train=lambda model, seed: 1 / 0"), "train with seed 0"),
        (returning(more=", train=lambda model, seed: Mine()"), "in place, got a"),
        (returning(more=", train=3"), "train: expected a function, got a int"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(study, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_file, "IMPORT_SECONDS", 0.3)
    write(tmp_path, study=study)
    line = len(GRAPH.splitlines()) + 1
    message = message.replace("LINE", str(line)).replace("NEXT", str(line + 1))
    code, out, err = search(capsys, "--study", "mine.py", "--quiet")
    errors = [line for line in err.splitlines() if line not in ("imported", "called")]
    assert (code, out, len(errors)) == (2, "", 1), err
    assert errors[0].startswith("error: ") and message in errors[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--study", "none.py"], "expected a Python file at"),
        (["--study", "."], "expected FILE.py, FILE.py:function or package.module:function"),
        (["--study", "gcn-digits"], "(--name gives a study its name)"),
        (["--study", "mine.py:other"], "expected a function other() in mine.py"),
        (["--study", "mine.py:1"], "expected FILE.py, FILE.py:function"),
        (["--study", "no_such_package.graphs:study"], "raised ModuleNotFoundError"),
        (["--study", "no_such_module:study"], "expected a module no_such_module"),
        (["--study", "math:study"], "expected a module math with a Python file"),
        (["--study", "mine.py", "--model", "gcn"], "--study: expected without --model, got both"),
        (["--study", "mine.py", "--dataset", "Cora"], "expected without --dataset"),
        (["--study", "mine.py", "--raw-features"], "expected without --normalize-features"),
    ],
)
def test_a_mistake_on_the_line_is_one_line(words, message, mine, capsys):
    for command in ("search", "init"):
        code, out, err = search(capsys, *words, command=command)
        errors = [line for line in err.splitlines() if line != "imported"]
        assert (code, out, len(errors)) == (2, "", 1), err
        assert message in errors[0]


def test_ctrl_c_ends_an_import_that_hangs(tmp_path):
    write(tmp_path, study="\nimport time\nopen('here', 'w').close()\ntime.sleep(99)\n")
    process = start(tmp_path, "search", "--study", "mine.py", *STORAGE)
    wait_for((tmp_path / "here").exists)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = end(process, 130)
    assert time.monotonic() - started < 10
    assert "stopped" in err and "Traceback" not in err
    assert os.path.exists("here")


@pytest.mark.parametrize(
    ("study", "call"),
    [
        (STUDY.replace('print("called")', "__import__('time').sleep(0.3)"), r"study\(\)"),
        (STUDY.replace("Mine()", "[__import__('time').sleep(0.3), Mine()][1]"), r"model\(0\)"),
    ],
)
def test_a_function_that_runs_long_is_named(study, call, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(study_file, "PATIENT_SECONDS", 0.1)
    path = write(tmp_path, study=study)
    plan = SearchPlan(model=None, dataset=None, own=StudyReference(str(path)))
    found = study_file.load_study_file(str(path))
    found.untrained(plan, found.own.data, 0)
    told = [one for one in caplog.messages if "still waiting" in one]
    assert len(told) == 1
    assert re.fullmatch(
        f"--study .*mine.py: {call} has run for 0.1 s, still waiting for it", told[0]
    )


def test_a_quick_function_is_not_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(study_file, "PATIENT_SECONDS", 5.0)
    study_file.load_study_file(str(write(tmp_path)))
    assert caplog.messages == []


def test_the_page_of_own_models_says_to_name_their_file(tmp_path, capsys):
    write(tmp_path)
    assert search(capsys, "--study", "mine.py", "--quiet")[0] == 0
    study = study_of(tmp_path)
    assert write_page(study, open_artifacts(storage_url=tmp_path / "s.db"))
    note, digest = get_note(study), hashlib.sha256(Path("mine.py").read_bytes()).hexdigest()
    words = f"""\
    # FILE.py: your copy of the file with SHA-256 {digest[:16]}
    sgquant export {study.study_name} --attach --out model.sgq --study FILE.py
"""
    assert words in note
    assert "mine.py" not in note  # a database names no file to run
