"""Several processes for the objective of a user's own script, on one machine."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event

import optuna
import torch
from optuna.storages import InMemoryStorage

from sgquant_optuna.exceptions import SgquantError, StudyDeletedError, WorkerError
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.workers.stopping import Stopped, Stopper, stop_with_parent
from sgquant_optuna.search.workers.worker import measure_trials
from sgquant_optuna.search.workers.worker_processes import (
    BAD_INPUT,
    DELETED,
    Process,
    RestartedProcesses,
    Slot,
    threads_for,
)
from sgquant_optuna.study.deletion import deletion_of, telling_deletion

_POLL = 0.1  # seconds between two looks at the processes
_GUARD = 'if __name__ == "__main__":'


def run_trials(
    study: optuna.Study,
    objective: QuantizationObjective,
    *,
    n_trials: int,
    n_jobs: int = 1,
    timeout: float | None = None,
    grace: float = 5.0,
) -> None:
    """Measure trials in several processes until the study has its number of complete ones.

    A configuration is measured once, and the number is exact, whoever else works on the study: the
    same script on other machines may. A process that dies is replaced, at most three times, and
    its trial is run again. Ctrl+C and SIGTERM give back what is not finished within ``grace``
    seconds. The cores are divided among the processes, each of which begins with the import of
    your script: what it does must stand under ``if __name__ == "__main__":``.

    Args:
        study:
            Study of :func:`create_study`, in a database that all processes can open.
        objective:
            Objective of the study. It is copied to each process, so its parts have to be ones that
            Python can pickle: functions of a file, not lambdas.
        n_trials:
            Complete trials of the study, earlier ones included.
        n_jobs:
            Number of processes; with 1, this process measures them itself.
        timeout:
            Seconds after which no further trial begins.
        grace:
            Seconds that a running trial gets to finish after a signal.

    Raises:
        KeyboardInterrupt:
            After Ctrl+C or SIGTERM, when all processes have ended.
        StudyDeletedError:
            If the study was deleted meanwhile.
        StudyMismatchError:
            If the study was measured on another graph, model, space or protocol.
        TypeError:
            If study or objective cannot be copied to another process.
        ValueError:
            If a number is too small, the study is in memory, or the call is not under
            ``if __name__ == "__main__":``.
        WorkerError:
            If trials fail three times in a row, or processes die again and again.
    """
    if n_trials < 1 or n_jobs < 1:
        raise ValueError(
            f"run_trials: expected n_trials and n_jobs of at least 1, got {n_trials} and {n_jobs}"
        )
    with telling_deletion(study):
        objective.sign(study)
    deadline = time.time() + (math.inf if timeout is None else timeout)
    if n_jobs == 1:
        stopper = Stopper(grace)
        with stopper.installed(), stopper.protected(), contextlib.suppress(Stopped):
            measure_trials(
                study,
                objective,
                lambda: n_trials,
                deadline=time.monotonic() + deadline - time.time(),
                stopper=stopper,
            )
        if stopper.requested:
            raise KeyboardInterrupt
        return
    work = _Work(_copied(study, objective), n_trials, deadline, grace, threads_for(n_jobs))
    processes = _ScriptProcesses(work, n_jobs, grace=grace)
    with processes.forwarding_signals():
        while processes.watch():
            time.sleep(_POLL)
    if processes.exit_code == DELETED:
        raise deletion_of(study)
    processes.raise_what_went_wrong()


def _copied(study: optuna.Study, objective: QuantizationObjective) -> bytes:
    """Return study and objective as bytes; they go to processes that this one starts, only."""
    if isinstance(study._storage, InMemoryStorage):
        raise ValueError(
            "run_trials: expected a study in a database, got one in memory, which no other "
            'process can see; create_study(objective, storage="study.db") makes a file'
        )
    if multiprocessing.parent_process() is not None:
        raise ValueError(
            f"run_trials: expected one call, got another from a process that it started; put the "
            f"calls of the script under {_GUARD}"
        )
    try:
        return pickle.dumps((study, objective))
    except Exception as error:  # each class has errors of its own
        raise TypeError(
            f"run_trials: expected an objective that can be copied to other processes, got one "
            f"that cannot ({' '.join(str(error).split())}); define its functions and classes at "
            f"the top level of a file (sgq.columns(...) makes a forward)"
        ) from error


class _Work:
    """What each process does; sent to it when it is started.

    Args:
        content:
            Study and objective.
        n_trials:
            Complete trials of the study.
        deadline:
            Time after which no further trial begins, as ``time.time()``.
        grace:
            Seconds that a running trial gets to finish after a signal.
        threads:
            Threads of torch.
    """

    def __init__(
        self, content: bytes, n_trials: int, deadline: float, grace: float, threads: int
    ) -> None:
        self.parent = os.getpid()
        self._content = content
        self._n_trials = n_trials
        self._deadline = deadline
        self._grace = grace
        self._threads = threads

    def __call__(self, begun: Event) -> None:
        """Be one worker, and end with its exit code."""
        os.setpgid(0, 0)  # Ctrl+C in the terminal reaches the parent alone, which passes it on
        torch.set_num_threads(self._threads)
        stop_with_parent(self.parent)
        stopper = Stopper(self._grace)
        study, objective = pickle.loads(self._content)  # noqa: S301 - of the parent process
        begun.set()
        try:
            with stopper.installed(), stopper.protected(), contextlib.suppress(Stopped):
                study.sampler.reseed_rng()
                measure_trials(
                    study,
                    objective,
                    lambda: self._n_trials,
                    deadline=time.monotonic() + self._deadline - time.time(),
                    stopper=stopper,
                )
        except StudyDeletedError:  # the parent tells it, once for all
            sys.exit(DELETED)
        except SgquantError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            sys.exit(1 if isinstance(error, WorkerError) else BAD_INPUT)
        sys.exit(stopper.exit_code)


class _ScriptProcesses(RestartedProcesses):
    """Processes that import the user's script and measure trials."""

    def __init__(self, work: _Work, count: int, *, grace: float) -> None:
        self._work = work
        self._context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks
        self._has_begun = True
        super().__init__(count, grace=grace)

    def raise_what_went_wrong(self) -> None:
        """Raise the error of processes that did not all end well."""
        if not self._has_begun:
            raise ValueError(
                f"run_trials: its processes ended while they imported the script (what they wrote "
                f"above says why); put its calls under {_GUARD}, and classes and functions at the "
                f"top level of a file"
            )
        code = self.exit_code
        if code > 128:
            raise KeyboardInterrupt
        if code:
            raise WorkerError("run_trials: a worker process failed; what it wrote above says why")

    def _launch(self, slot: Slot) -> Process:
        begun = self._context.Event()
        process = self._context.Process(target=self._work, args=(begun,))
        process.start()
        return _Spawned(process, begun, self)

    def did_not_begin(self) -> None:
        """Note that a process ended in the import of the script."""
        self._has_begun = False


class _Spawned:
    """A process of ``multiprocessing`` with the methods of ``subprocess.Popen``."""

    def __init__(self, process: BaseProcess, begun: Event, all_of_them: _ScriptProcesses) -> None:
        self._process = process
        self._begun = begun
        self._all = all_of_them

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def poll(self) -> int | None:
        code = self._process.exitcode
        if code is None or code <= 0 or self._begun.is_set():
            return code
        self._all.did_not_begin()  # nor would another one
        return BAD_INPUT

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.Signals(number))
