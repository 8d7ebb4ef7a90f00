"""Names that hold commands to the terminal are text in whatever is printed."""

import io
import logging
import re
import sys
import warnings
from pathlib import Path

import optuna
import pytest

import sgquant_optuna.cli
from sgquant_optuna.cli import main
from sgquant_optuna.cli.console import console, plain
from sgquant_optuna.cli.logs import LogLevel, quiet_optuna, short_warnings, start_logging
from sgquant_optuna.cli.terminal import VisibleStream, visible, visible_streams
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.attributes import RECORD_ATTR
from tests.cli.test_commands import run
from tests.hand_made import measured, new_study

EVIL = "a\x1b[2J\x1b]0;pwn\x07\x9b31m\x7f\u202e\u2066b\r"
SHOWN = r"a\x1b[2J\x1b]0;pwn\x07\x9b31m\x7f\u202e\u2066b\r"
OWN = re.compile(r"\x1b\[[\d;]*m")  # colours of rich


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def bad(text):
    """Return the characters that a terminal would obey."""
    return [c for c in text.replace("\r\n", "\n") if visible(c) != c]


def test_every_control_is_seen_and_all_else_is_left():
    assert visible(EVIL) == SHOWN and visible(SHOWN) == SHOWN
    assert visible("\ud800x\udfff") == r"\ud800x\udfff"
    kept = "Grüße 日本 العربية 🙂 \\x1b [/]\tone\r\ntwo\n\u200e"
    assert visible(kept) == kept
    assert all(bad(chr(code)) for code in (*range(9), *range(11, 32), *range(127, 160)))


@pytest.fixture
def study():
    """A study, its layers and its worker with names of the kind."""
    study = new_study(open_storage("s.db"), name=EVIL, planned=4)
    record = study.user_attrs[RECORD_ATTR]
    record["fingerprint"]["quantizer"] = {}
    study.set_user_attr(RECORD_ATTR, record)
    study.add_trial(measured((8, 8, 8, 8), 0.0, worker=EVIL))
    study.add_trial(measured((1, 1, 1, 1), 9.0, worker=f"2{EVIL}"))
    return study


COMMANDS = [
    ["list"],
    ["status"],
    ["status", "--json"],
    ["status", EVIL],
    ["report"],
    *(["report", "--format", kind] for kind in ("csv", "markdown", "html", "json")),
    ["report", "--max-drop", "20"],
    ["report", "--max-drop", "20", "--format", "json"],
    ["export", "--assignment-only"],
    ["export", "--assignment-only", "--out", f"{EVIL}.json"],
]


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_lets_a_name_reach_the_terminal(study, command, color, monkeypatch, capsys):
    if color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, err = run(capsys, *command, "--storage", "s.db")
    assert code == 0 and out
    assert not bad(OWN.sub("", out + err))


def test_the_names_in_a_table_are_whole(study, capsys):
    for command in ("list", "status"):
        assert SHOWN in run(capsys, command, "--storage", "s.db")[1]


@pytest.mark.parametrize(
    "command",
    [
        ["report", f"other{EVIL}", "--storage", "s.db"],
        ["report", "other", "--storage", "s.db"],  # names those that there are
        ["status", "--storage", f"none/{EVIL}.db"],
        ["status", "--storage", f"{EVIL}://host"],
        ["evaluate", f"{EVIL}.sgq"],
        ["evaluate", "\udce9.sgq"],
        ["status", "\udce9", "--storage", "s.db"],
        ["report", "--storage", "s.db", "--out", f"none/{EVIL}"],
        ["dashboard", "--storage", "s.db", "--allow-host", EVIL],
        ["search", "--dataset", EVIL],
        ["search", "--model", EVIL],
        ["evaluate", "one", EVIL],
        ["status", f"--{EVIL}"],
        [EVIL],
        [f"--{EVIL}"],
    ],
    ids=ascii,
)
def test_an_error_tells_a_name_as_text(study, command, capsys):
    code, out, err = run(capsys, *command)
    assert code == 2 and err and not bad(OWN.sub("", out + err))


def test_the_message_of_a_database_is_text_and_no_longer_than_can_be_read(
    study, monkeypatch, capsys
):
    def fail(*arguments, **options):
        raise ValueError(f"{EVIL}\nsecond" + "x" * 100_000)

    monkeypatch.setattr("sgquant_optuna.study.loading.load_study", fail)
    code, _, err = run(capsys, "status", "--storage", "s.db")
    assert code == 2 and not bad(err) and err.count("\n") == 1 and len(err) < 3000


def test_a_traceback_is_text(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError(EVIL)

    monkeypatch.setattr("sgquant_optuna.study.loading.load_study", fail)
    with pytest.raises(RuntimeError) as caught:
        main(["status", "--storage", "s.db"])
    sys.excepthook(RuntimeError, caught.value, None)
    err = capsys.readouterr().err
    assert SHOWN in err and not bad(err)


def test_lines_of_a_log_and_warnings_are_text_and_one_line_each(capsys):
    logger = logging.getLogger("sgquant_optuna")
    before = (logger.handlers, logger.propagate, logger.level)
    try:
        with visible_streams(), warnings.catch_warnings():
            warnings.simplefilter("always")
            quiet_optuna()
            start_logging(f"{EVIL}\nerror: x", LogLevel.INFO)
            logger.info("trial of %s", f"{EVIL}\nerror: x")
            try:
                raise ValueError(EVIL)
            except ValueError:
                logger.exception("failed")
            with short_warnings():
                warnings.warn(EVIL, UserWarning, stacklevel=1)
            print(EVIL)
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n"
    assert not bad(err) and err.count(SHOWN) >= 3 and "\nerror" not in err


def test_what_optuna_logs_is_text():
    quiet_optuna()
    handlers = [h for h in logging.getLogger("optuna").handlers if hasattr(h, "stream")]
    assert handlers and all(isinstance(h.stream, VisibleStream) for h in handlers)
    quiet_optuna()
    assert not any(isinstance(h.stream._stream, VisibleStream) for h in handlers)
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


class Terminal(io.TextIOWrapper):
    """A terminal of one encoding."""

    def __init__(self, encoding, tty):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.tty = tty

    def isatty(self):
        return self.tty

    @property
    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", [["list"], ["report"], ["export"], ["status", "\udcff"]])
def test_a_terminal_of_few_letters_shows_all_others_as_escapes(
    study, command, encoding, monkeypatch
):
    if command == ["export"]:
        command = [*command, "--assignment-only", "--out", "日本.json"]
    new_study(open_storage("s.db"), name="Grüße 日本 🙂")
    command = [*command, *([EVIL] if command[0] in ("report", "export") else [])]
    out, err = Terminal(encoding, tty=False), Terminal(encoding, tty=False)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        main([*command, "--storage", "s.db"])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    assert code == (2 if "\udcff" in command else 0)
    assert out.text or err.text
    assert not bad(out.text + err.text)


def test_a_bar_of_ours_still_moves_the_cursor(monkeypatch):
    terminal = Terminal("utf-8", tty=True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with visible_streams():
        with console(stderr=True).status(plain(f"training {EVIL}")):
            pass
        console(stderr=True).print(EVIL, markup=False)
    text = terminal.text
    assert "\x1b[?25l" in text and "\x1b[2K" in text and SHOWN in text
    assert "\x1b[2J" not in text and "\x1b]" not in text and "\x07" not in text


def test_the_streams_come_back(capsys):
    kept = sys.stdout, sys.stderr
    with pytest.raises(SystemExit), visible_streams():
        raise SystemExit(2)
    with visible_streams(), visible_streams():
        assert isinstance(sys.stdout.rich_proxied_file, type(kept[0]))
        sys.stdout.writelines(["a\x07", "b\n"])
    assert (sys.stdout, sys.stderr) == kept
    assert capsys.readouterr().out == "a\\x07b\n"


def test_no_command_prints_by_a_console_of_its_own():
    folder = Path(sgquant_optuna.cli.__file__).parent
    texts = {path.name: path.read_text() for path in folder.glob("*.py")}
    # One that writes to a file is not the terminal.
    others = [name for name, text in texts.items() if re.search(r"\bConsole\((?!file=)", text)]
    assert len(texts) > 10 and not others
