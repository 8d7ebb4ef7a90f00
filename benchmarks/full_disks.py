"""Commands that write to a full disk: the old file stays whole, one line says what happened."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

from campaign_stage import Row
from chaos_disasters import Disk, full_disk

from sgquant_optuna.cli import main

_QUICK = ["--epochs", "5", "--models", "1", "--finetune-epochs", "2", "--storage", "study.db"]
_MEGABYTES = 4


def _run(folder: Path, arguments: list[str]) -> None:
    os.chdir(folder)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    main(arguments)


class _Commands:
    """Runs commands as processes, in a folder that has room."""

    def __init__(self, processes: ForkServerContext, folder: Path) -> None:
        self._processes, self._folder = processes, folder

    def run(self, *arguments: str) -> tuple[int | None, list[str]]:
        """Return the exit code and the lines of the standard error."""
        process = self._processes.Process(target=_run, args=(self._folder, list(arguments)))
        process.start()
        process.join()
        return process.exitcode, (self._folder / "err").read_text().splitlines()


def write_to_a_full_disk(processes: ForkServerContext) -> Row:
    """Write reports, an export and trained models while a disk is full, and after it.

    Args:
        processes:
            Context of the processes of the commands.
    """
    row = Row("full disk", "files", asked=0, complete=0)
    with TemporaryDirectory() as name, full_disk(megabytes=_MEGABYTES) as disk:
        commands = _Commands(processes, Path(name))
        search = ["search", *_QUICK, "--final-seeds", "2", "--n-trials", "3", "--quiet"]
        code, lines = commands.run(*search, "--name", "small")
        if code:
            row.remarks.append(f"search: exit code {code}, {lines[-1:]}")
            return row
        database = ["small", "--storage", "study.db"]
        for what, file, command in (
            ("report", "report.html", ["report", *database, "--format", "html"]),
            ("table", "report.csv", ["report", *database, "--format", "csv"]),
            ("widths", "widths.json", ["export", *database, "--assignment-only"]),
            ("export", "model.safetensors", ["export", *database]),
        ):
            path = disk.folder / file
            _judge(row, what, disk, lambda c=command, p=path: commands.run(*c, "--out", str(p)))
        models = ["init", *_QUICK, "--name", "other", "--artifacts", str(disk.folder / "models")]
        _judge(row, "artifacts", disk, lambda: commands.run(*models))
    return row


def _judge(
    row: Row, what: str, disk: Disk, write: Callable[[], tuple[int | None, list[str]]]
) -> None:
    """Write with room, if that makes a file to keep, then without, then with room again."""
    row.asked += 1
    is_first_full = what == "artifacts"  # which are written once
    wrong = []
    if not is_first_full and (done := write())[0]:
        wrong.append(f"with room {done}")
    before = _files(disk.folder)
    with disk.filled():
        code, lines = write()
    errors = [line for line in lines if line.startswith("error: ")]
    if not code or len(errors) != 1 or lines[-1:] != errors:
        wrong.append(f"exit code {code}, {len(lines)} lines: {lines[-1:]}")
    if _files(disk.folder) != before:
        wrong.append("files changed")
    if (done := write())[0]:
        wrong.append(f"afterwards {done}")
    row.complete += not wrong
    row.remarks.extend(f"{what}: {text}" for text in wrong)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
