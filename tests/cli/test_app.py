"""The process of a command ends at once after a stop, and as any other otherwise."""

import os
import subprocess
import sys

import pytest

ENDING = """
import atexit, sys, time
from sgquant_optuna.cli import app
def said():
    sys.stdout.write("all that was said")
    sys.exit(int(sys.argv[1]))
app.main = said
atexit.register(lambda: print(", taken down", end=""))
app.run()
"""


@pytest.mark.parametrize(
    ("code", "out"),
    [
        (130, "all that was said"),
        (143, "all that was said"),
        (2, "all that was said, taken down"),
        (0, "all that was said, taken down"),
    ],
)
def test_a_stopped_command_flushes_and_ends_without_teardown(code, out):
    words = [sys.executable, "-c", ENDING, str(code)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, out)


def test_a_stopped_command_ends_with_its_code_when_its_reader_is_gone():
    words = [sys.executable, "-c", ENDING, "143"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        words, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.wait(60) == 143
        assert process.stderr.read() == b""
