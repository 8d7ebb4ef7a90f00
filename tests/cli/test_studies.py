"""``sgquant list``, ``status`` and ``report``, on studies made by hand."""

import json
import sqlite3
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from sgquant_optuna.cli import main
from sgquant_optuna.cli.app import app
from sgquant_optuna.storage import open_storage
from sgquant_optuna.study.early_stop import record_timeout
from sgquant_optuna.study.loading import load_study
from sgquant_optuna.study.plan import SearchPlan
from tests.hand_made import measured, new_study

NASTY = """it's "x" [/red] <b>'; DROP TABLE trials; --"""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def file(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    for name, planned in (("done", 2), (NASTY, 5)):
        study = new_study(storage, name=name, planned=planned)
        study.add_trial(measured((1, 1, 1, 1), 9.0, worker="host:1"))
        study.add_trial(measured((4, 4, 4, 4), 0.25, worker="host:2"))
    new_study(storage, name="new", planned=7)
    return "s.db"


def run(capsys, *arguments):
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_list_shows_every_study_in_a_line(file, capsys):
    code, out, _ = run(capsys, "list", "--storage", file)
    assert code == 0
    lines = {line.split("│")[0].strip(): line.split("│") for line in out.splitlines()}
    assert [cell.strip() for cell in lines["done"][1:]] == ["2/2", "0", "0", "8.0x", "done"]
    assert [cell.strip() for cell in lines[NASTY][1:]] == ["2/5", "0", "0", "8.0x", "stopped"]
    assert [cell.strip() for cell in lines["new"][1:]] == ["0/7", "0", "0", "-", "new"]


@pytest.mark.parametrize("command", [["list"], ["status", "done"], ["report", "done"]])
def test_what_shows_studies_does_not_wait_for_a_writer(command, file, tmp_path, capsys):
    writer = sqlite3.connect(tmp_path / file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert run(capsys, *command, "--storage", file)[0] == 0
    assert time.monotonic() - started < 5
    writer.close()


@pytest.mark.parametrize("attribute", ["sgquant:record", "sgquant:final"])
def test_list_names_a_study_with_other_fields_as_of_another_version(attribute, tmp_path, capsys):
    study = new_study(open_storage(tmp_path / "s.db"), name="theirs")
    study.add_trial(measured((4, 4, 4, 4), 0.25))
    study.set_user_attr(attribute, {"version": 1, "novelty": 1})
    code, out, _ = run(capsys, "list", "--storage", "s.db")
    assert code == 0 and "of another version" in out
    for command in ("status", "report"):
        code, _, err = run(capsys, command, "theirs", "--storage", "s.db")
        assert code == 2 and err.count("\n") == 1
        assert "study 'theirs'" in err and "the version of sgquant_optuna that made it" in err


def test_list_of_an_empty_storage_says_what_to_do(tmp_path, capsys):
    open_storage(tmp_path / "s.db")
    code, out, _ = run(capsys, "list", "--storage", "s.db")
    assert code == 0 and "sgquant search makes one" in out


def test_status_shows_counts_and_workers(file, capsys):
    code, out, _ = run(capsys, "status", NASTY, "--storage", file)
    assert code == 0
    words = " ".join(out.split())
    assert NASTY in words and "state stopped" in words and "finished 2 of 5" in words
    assert "best saving 8.0x" in words and "host:1" in words and "host:2" in words


def test_status_tells_why_a_search_ended_early(file, capsys):
    study = load_study(NASTY, storage=file)
    record_timeout(study, SearchPlan(n_trials=5))
    _, out, _ = run(capsys, "status", NASTY, "--storage", file)
    assert "ended early its time was over" in " ".join(out.split())


def test_status_as_json(file, capsys):
    code, out, _ = run(capsys, "status", "done", "--json", "--storage", file)
    told = json.loads(out)
    assert code == 0
    assert (told["study_name"], told["finished"], told["state"]) == ("done", 2, "done")
    assert [worker["name"] for worker in told["workers"]] == ["host:1", "host:2"]


@pytest.mark.parametrize("format_", ["table", "json", "csv", "markdown", "html"])
def test_report_writes_a_file_of_each_format(format_, file, tmp_path, capsys):
    code, out, _ = run(capsys, "report", NASTY, "--storage", file, "--format", format_)
    assert code == 0
    out_file = tmp_path / "report.txt"
    arguments = ["--storage", file, "--format", format_, "--out", str(out_file)]
    assert run(capsys, "report", NASTY, *arguments) == (0, "", "")
    written = out_file.read_text()
    if format_ == "table":  # a terminal may be wider
        assert "89.75 %" in written
    else:
        assert written == out
    if format_ == "html":
        assert written.count("data:image/png;base64,") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--storage", "none.db"], "there is no such file"),
        (["status", "--storage", "none.db"], "there is no such file"),
        (["status", "--storage", "s.db"], "expected one study name"),
        (["status", "x'; --", "--storage", "s.db"], "expected study"),
        (["report", "new", "--storage", "s.db"], "at least one finished trial"),
        (["report", "done", "--storage", "s.db", "--out", "/dev/null"], "got a device"),
        (
            ["report", "done", "--storage", "s.db", "--out", "no/x"],
            "no/x: expected a file in an exist",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, file, capsys):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_the_shell_completes_study_names(file):
    environment = {
        "_SGQUANT_COMPLETE": "complete_bash",
        "COMP_WORDS": "sgquant status --storage s.db d",
        "COMP_CWORD": "4",
    }
    out = CliRunner().invoke(app, [], prog_name="sgquant", env=environment).output
    assert out.split() == ["done"]
    environment["COMP_WORDS"] = "sgquant status --storage none.db d"
    assert CliRunner().invoke(app, [], prog_name="sgquant", env=environment).output.strip() == ""


@pytest.mark.parametrize("command", ["list", "status done", "report done"])
def test_looking_at_studies_needs_no_torch(command, file):
    code = (
        "import sys; from sgquant_optuna.cli import main\n"
        f"try: main({[*command.split(), '--storage', file]!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
