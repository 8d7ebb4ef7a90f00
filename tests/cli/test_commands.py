import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.cli import main
from sgquant_optuna.exceptions import ExportWarning
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.urls import shown_storage
from sgquant_optuna.study.dashboard.notes import Place
from sgquant_optuna.study.plan import SearchPlan
from tests.hand_made import new_study


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


FAST = ["--epochs", "10", "--models", "1", "--final-seeds", "2", "--storage", "s.db"]
QUICK = ["search", "--finetune-epochs", "2", "--n-trials", "4", *FAST]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_search_ends_with_the_report_and_report_shows_it_again(capsys):
    code, out, _ = run(capsys, *QUICK)
    assert code == 0
    assert "gcn-digits-lwq+cwq+taq: bits of trial" in out
    assert re.search(r"promise, \d+ trainings", out) and re.search(r"test, \d+ trainings", out)
    table = out[out.index("┏") :]
    code, out, _ = run(capsys, "report", "--storage", "s.db")
    assert code == 0
    assert out[out.index("┏") :] == table


def test_a_quiet_search_shows_the_report_alone(capsys):
    code, out, err = run(capsys, *QUICK, "--quiet")
    assert code == 0 and not err
    assert out.split()[0] == "gcn-digits-lwq+cwq+taq:" and "best saving" not in out


@pytest.mark.filterwarnings("always::sgquant_optuna.exceptions.ExportWarning")
def test_a_search_whose_model_cannot_be_exported_says_so_in_one_line(monkeypatch, capsys):
    def cannot(*_):
        warnings.warn("export of GCN:\nit is too new", ExportWarning, stacklevel=3)

    monkeypatch.setattr("sgquant_optuna.search.objective.try_export", cannot)
    for command in ("init", "search"):
        arguments = [command, *QUICK[1:], "--name", command, "--quiet"]
        code, _, err = run(capsys, *arguments)
        assert (code, err) == (0, "warning: export of GCN: it is too new\n")


def test_a_quiet_search_tells_the_errors_of_its_workers(tmp_path, monkeypatch, capfd):
    worker = tmp_path / "python"
    worker.write_text("#!/bin/sh\necho 'error: [/x] is broken' >&2\nexit 2\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    with pytest.raises(SystemExit) as stop:
        main([*QUICK, "--quiet", "--n-jobs", "2"])
    assert stop.value.code == 2
    assert tuple(capfd.readouterr()) == ("", "error: [/x] is broken\n")


def test_init_may_be_quiet(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if the output were a terminal
    arguments = ("init", "--epochs", "1", "--models", "1", "--finetune-epochs", "1")
    code, out, err = run(capsys, *arguments, "--storage", "s.db", "--quiet")
    assert (code, err) == (0, "") and "Join it:" in out
    code, _, err = run(capsys, *arguments, "--storage", "other.db")
    assert code == 0 and "training gcn on digits" in err


def test_help_and_the_docs_tell_the_same_exit_codes(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    help_text = " ".join(out.split()).partition("Exit codes: ")[2].partition(".")[0]
    docs = Path(__file__).parents[2] / "docs"
    dashboard = (docs / "dashboard.md").read_text().partition("Exit codes: ")[2].partition(".")[0]
    assert " ".join(dashboard.split()) == help_text
    told = re.findall(r"(?:^|, )(\d+) ", help_text)
    table = (docs / "workers.md").read_text().partition("| exit code | meaning |")[2]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, flags=re.MULTILINE)
    assert ", ".join(rows).split(", ") == told == ["0", "1", "2", "3", "130", "143"]


def test_a_database_that_fails_is_one_line_and_exit_code_1(capsys):
    storage = open_storage("s.db")
    new_study(storage)
    with storage.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE trials RENAME COLUMN state TO other"))
    for command in ("status", "list", "report"):
        code, _, err = run(capsys, command, "--storage", "s.db")
        assert code == 1
        assert err.startswith("error: the database failed (no such column:")
        assert err.count("\n") == 1
    with pytest.raises(sa.exc.SQLAlchemyError):
        main(["status", "--storage", "s.db", "--debug"])


def test_a_mistake_of_this_program_keeps_its_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a mistake")

    monkeypatch.setattr("sgquant_optuna.study.loading.load_study", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["status", "--storage", "s.db"])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "{here}/storage/sgquant.db"),
        ("s.db", "{here}/s.db"),
        ("sqlite:///s.db", "sqlite:///{here}/s.db"),
        ("journal:///s.log", "journal:///{here}/s.log"),
        ("mysql://me:secret@host/db", "mysql+pymysql://me:***@host/db"),
        ("postgresql://host/db?password=secret", "postgresql+psycopg://host/db?password=***"),
        ("grpc://host:13000", "grpc://host:13000"),
    ],
)
def test_a_storage_is_shown_for_any_folder_and_without_password(given, shown, tmp_path):
    assert shown_storage(given) == shown.format(here=tmp_path)


def test_the_dashboard_tells_its_notes_where_storage_and_files_are(tmp_path, monkeypatch):
    open_storage("s.db")
    served = {}
    monkeypatch.setattr(
        "sgquant_optuna.study.dashboard.server.serve", lambda *_, **kw: served.update(kw)
    )
    with pytest.raises(SystemExit):
        main(["dashboard", "--storage", "s.db", "--artifacts", "files"])
    assert served["place"] == Place(f"{tmp_path}/s.db", f"{tmp_path}/files")


def test_the_options_of_the_dashboard_reach_its_server(monkeypatch):
    open_storage("s.db")
    served = {}
    monkeypatch.setattr(
        "sgquant_optuna.study.dashboard.server.serve", lambda *_, **kw: served.update(kw)
    )
    names = ["--allow-host", "gpu7", "--allow-host", "gpu7.example.org"]
    with pytest.raises(SystemExit):
        main(
            [
                "dashboard",
                "--storage",
                "s.db",
                "--host",
                "::",
                "--port",
                "81",
                *names,
                "--read-only",
            ]
        )
    assert (served["host"], served["port"]) == ("::", 81)
    assert served["allow_hosts"] == ["gpu7", "gpu7.example.org"] and served["read_only"]


def test_an_allowed_name_that_is_none_ends_the_dashboard(capsys):
    open_storage("s.db")
    code, _, err = run(capsys, "dashboard", "--storage", "s.db", "--allow-host", "http://gpu7")
    assert code == 2 and err.startswith("error: --allow-host: expected a name such as gpu7.")


def test_the_same_command_resumes_and_does_no_more_than_asked(capsys):
    for total, shown in ((3, 3), (5, 5), (5, 5)):
        code, _, _ = run(capsys, *QUICK, "--n-trials", str(total))
        assert code == 0
        names = optuna.get_all_study_names(open_storage("s.db"))
        study = optuna.load_study(study_name=names[0], storage=open_storage("s.db"))
        assert len(study.trials) == shown


def test_every_option_reaches_the_study(capsys):
    code, out, err = run(
        capsys,
        *QUICK,
        *("--model", "agnn", "--granularity", "lwq+cwq", "--mode", "pareto"),
        *("--widths", "2,16", "--freeze", "lin1=8", "--encoding", "ordinal"),
        *("--rounding", "floor", "--range-estimator", "minmax", "--range-axis", "column"),
        *("--max-drop", "3", "--models", "2", "--seed", "5", "--name", "mine"),
        *("--cost-model", "boosted", "--acquisition", "paper"),
        *("--patience", "9", "--timeout", "600"),
    )
    assert code == 0, err
    assert "mine: bits of trial" in out
    study = optuna.load_study(study_name="mine", storage=open_storage("s.db"))
    assert study.trials[0].distributions["props.0/attention"] == (
        optuna.distributions.IntDistribution(0, 1)
    )
    assert study.trials[0].user_attrs["bit_widths"]["lin1/embedding"] == 8
    assert len(study.directions) == 2
    plan = SearchPlan.load(study)
    assert (plan.cost_model, plan.acquisition) == ("boosted", "paper")
    assert (plan.patience, plan.timeout) == (9, 600.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--dataset", "coraa"], "did you mean Cora?"),
        (["search", "--dataset", "[/x]"], "'[/x]'"),
        (["init", "--dataset", "[/x]"], "'[/x]'"),
        (["search", "--widths", "1,9"], "candidate bit widths: expected one of"),
        (["search", "--widths", "1,x"], "--widths: expected numbers such as 1,2,4,8"),
        (["search", "--granularity", "lwq+depth"], "granularity: expected 'uniform'"),
        (["search", "--degree-edges", "8,4"], "degree edges: expected positive integers"),
        (["search", "--freeze", "conv1"], "--freeze: expected NAME=BITS"),
        (["search", "--freeze", "conv9=8"], "frozen site: expected one of conv1/embedding"),
        (["search", "--max-drop", "-1"], "max_drop: expected a drop >= 0"),
        (["search", "--timeout", "0"], "timeout: expected seconds above 0"),
        (["search", "--rounding", "up"], "rounding: expected one of"),
        (["search", "--range-axis", "node"], "axis: expected one of"),
        (["search", "--cost-model", "forest"], "cost_model: expected one of 'blend'"),
        (["init", "--acquisition", "ucb"], "acquisition: expected one of 'default', 'paper'"),
        (["search", "--storage", "nonsense://x"], "storage: expected a URL"),
        (["report", "--storage", "none.db"], "there is no such file"),
        (["dashboard", "--storage", "none.db"], "there is no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_an_unknown_option_or_model_is_exit_code_2(capsys):
    assert run(capsys, "search", "--nonsense")[0] == 2
    assert run(capsys, "search", "--model", "gin")[0] == 2


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="candidate bit widths"):
        main(["search", "--widths", "9", "--debug"])


def test_a_study_of_another_space_is_refused(capsys):
    assert run(capsys, *QUICK)[0] == 0
    code, _, err = run(capsys, *QUICK, "--widths", "1,2")
    assert code == 2
    assert "search space (candidates: was [1, 2, 4, 8], is [1, 2])" in err


def test_an_unknown_study_is_told(capsys):
    assert run(capsys, *QUICK)[0] == 0
    code, _, err = run(capsys, "report", "other", "--storage", "s.db")
    assert code == 2
    assert "expected study 'other'" in err


def start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from sgquant_optuna.cli import main; main()", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        storage = open_storage(path)
        studies = optuna.get_all_study_names(storage)
        if not studies:
            return 0
        study = optuna.load_study(study_name=studies[0], storage=storage)
        return len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    except optuna.exceptions.OptunaError:
        return 0


@pytest.mark.slow
def test_a_killed_search_resumes_and_measures_what_an_uninterrupted_one_does(tmp_path, capsys):
    search = ["search", "--finetune-epochs", "40", "--n-trials", "24", *FAST]
    process = start(search, tmp_path)
    deadline = time.monotonic() + 120
    while finished(tmp_path / "s.db") < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # well into the next trial
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = finished(tmp_path / "s.db")
    assert 8 <= before < 24

    assert run(capsys, *search)[0] == 0
    storage = open_storage("s.db")
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len(complete) == 24
    assert len(study.trials) <= 25  # at most the trial in flight was lost
    choices = [tuple(sorted(trial.params.items())) for trial in complete]
    assert len(set(choices)) == 24
