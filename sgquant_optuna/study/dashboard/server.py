"""The Optuna dashboard, with feasibility shown right and a note for every trial."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.exceptions import SgquantError, StudyNotFoundError
from sgquant_optuna.sampler.claims import constraints_of, prediction_of
from sgquant_optuna.study.dashboard.doors import Doors
from sgquant_optuna.study.dashboard.notes import Place, trial_note
from sgquant_optuna.study.dashboard.page import write_page
from sgquant_optuna.study.dashboard.request_bodies import RequestBodies, UploadStore
from sgquant_optuna.study.dashboard.web_server import WebServer
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import TrialRow, rows_of
from sgquant_optuna.study.selection import choose
from sgquant_optuna.study.trial_result import TrialResult

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore

REFRESH_SECONDS = 10.0
_STUDY_ROUTE = "/api/studies/<study_id:int>"
_FILE_ROUTES = "/artifacts/"
_logger = logging.getLogger(__name__)


def dashboard_app(storage: BaseStorage, artifact_store: ArtifactStore) -> Any:
    """Return the dashboard as a WSGI application.

    The dashboard of Optuna takes the best trial by its value alone and does not know constraints
    that were set by ``trial.set_constraint``. Here the best trials are feasible ones, or none,
    and infeasible ones are grey, in studies of two objectives too.

    Args:
        storage:
            Database of the studies.
        artifact_store:
            Store of their files.
    """
    from optuna_dashboard import wsgi

    cached = optuna.storages.get_storage(storage)  # finished trials are read once
    app = wsgi(cached, artifact_store=UploadStore(artifact_store))
    app.install(_StudyAnswers(cached))
    return app


class _StudyAnswers:
    """A plugin of bottle that completes what the server says of a study."""

    name, api = "sgquant", 2

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        """Wrap the views of one study and of its files; leave all others."""
        if route.rule.startswith(_FILE_ROUTES):
            return _without_traceback(callback)
        if route.rule != _STUDY_ROUTE or route.method != "GET":
            return callback

        def view(study_id: int) -> Any:
            answer = callback(study_id=study_id)
            if isinstance(answer, dict) and "best_trials" in answer:
                self._complete(study_id, answer)
            return answer

        return view

    def _complete(self, study_id: int, answer: dict[str, Any]) -> None:
        from optuna_dashboard._serializer import serialize_frozen_trial

        name = self._storage.get_study_name_from_id(study_id)
        study = optuna.load_study(study_name=name, storage=self._storage)
        try:
            record = StudyRecord.load(study)
        except SgquantError:  # of another version
            record = None
        trials = study.get_trials(deepcopy=False)
        rows: dict[int, TrialRow[TrialResult]] = {}
        if record is not None:
            rows = {row.number: row for row in rows_of(study, trials, TrialResult)}
        attrs = self._storage.get_study_system_attrs(study_id)
        answer["best_trials"] = [
            serialize_frozen_trial(study_id, trial, attrs)
            for trial in _best(study, trials, rows, record)
        ]
        for shown in (*answer["trials"], *answer["best_trials"]):
            if shown["number"] >= len(trials):
                continue  # began after the trials were read
            trial = trials[shown["number"]]
            result = _result(rows, trial)
            shown["constraints"] = _violations(trial, result, record)
            # A note of a person is stored, and has a version.
            if record is not None and result is not None and not shown["note"]["version"]:
                body = trial_note(record, result, prediction_of(trial.user_attrs))
                shown["note"] = {"version": 0, "body": body}


def _without_traceback(view: Callable[..., Any]) -> Callable[..., Any]:
    def checked(**ids: Any) -> Any:
        from bottle import HTTPError

        try:
            return view(**ids)
        except (ArtifactNotFound, ValueError):  # in another store, or of a strange name
            return HTTPError(404, "This file is not in the artifact store.")

    return checked


def _result(rows: Mapping[int, TrialRow[TrialResult]], trial: FrozenTrial) -> TrialResult | None:
    return rows[trial.number].result if trial.number in rows else None


def _violations(
    trial: FrozenTrial, result: TrialResult | None, record: StudyRecord | None
) -> list[float]:
    """Return what is not above 0 where a trial is feasible."""
    if record is not None and result is not None:
        return [record.limit.violation(result)]
    return list(constraints_of(trial).values())


def _best(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    rows: Mapping[int, TrialRow[TrialResult]],
    record: StudyRecord | None,
) -> list[FrozenTrial]:
    from optuna_dashboard._pareto_front import get_pareto_front_trials

    feasible = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and all(bad <= 0 for bad in _violations(trial, _result(rows, trial), record))
    ]
    if not feasible:
        return []
    if len(study.directions) > 1:
        front: list[FrozenTrial] = get_pareto_front_trials(feasible, study.directions)
        return front
    if record is not None:
        try:
            mine = [rows[trial.number] for trial in feasible]
            number = choose(study, mine, record.limit)[0].number
            return [next(trial for trial in feasible if trial.number == number)]
        except StudyNotFoundError:  # trials of another objective only
            pass
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return [min(feasible, key=lambda trial: sign * trial.values[0])]


def serve(
    storage: BaseStorage,
    artifact_store: ArtifactStore,
    *,
    host: str,
    port: int,
    place: Place | None = None,
    ready: Callable[[int], None] = lambda port: None,
    refresh_seconds: float = REFRESH_SECONDS,
    allow_hosts: Sequence[str] = (),
    read_only: bool = False,
) -> None:
    """Serve the dashboard until the process ends, and keep the pages of all studies up to date.

    Args:
        storage:
            Database of the studies.
        artifact_store:
            Store of their files.
        host:
            Address to listen on.
        port:
            Port to listen on; 0 for any free one.
        place:
            Storage and files that the notes name.
        ready:
            Function that is called with the port when the server listens.
        refresh_seconds:
            Seconds between two checks whether a page is out of date.
        allow_hosts:
            Names by which browsers may ask for it, beside ``host`` and those of this machine.
        read_only:
            Whether to write nothing: neither what a browser asks for, nor notes and plots.

    Raises:
        ValueError:
            If the address cannot be listened on, or a name is no name.
    """
    app = Doors(
        RequestBodies(dashboard_app(storage, artifact_store)),
        host=host,
        allow_hosts=allow_hosts,
        read_only=read_only,
    )
    try:
        server = WebServer(host, port, app)
    except OSError as error:
        raise ValueError(
            f"dashboard: cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from error
    stop = threading.Event()
    pages = threading.Thread(
        target=keep_pages,
        args=(storage, artifact_store, stop, refresh_seconds, place),
        daemon=True,
    )
    with server:
        if not read_only:
            pages.start()
        ready(server.server_port)
        try:
            server.serve_forever()
        finally:
            stop.set()
            if not read_only:
                pages.join()


def keep_pages(
    storage: BaseStorage,
    artifact_store: ArtifactStore,
    stop: threading.Event,
    seconds: float,
    place: Place | None = None,
) -> None:
    """Write the page of each study whenever trials have finished since, until it is stopped."""
    warned: dict[str, str] = {}
    seen: set[str] = set()
    while True:
        try:
            names = optuna.get_all_study_names(storage)
        except Exception as error:  # a database that restarts; the next look comes
            _logger.warning("dashboard: cannot read the studies (%s)", error)
            names = []
        for name in names:
            if stop.is_set():
                break
            try:
                study = optuna.load_study(study_name=name, storage=storage)
                write_page(study, artifact_store, place=place, check_files=name not in seen)
                seen.add(name)
                warned.pop(name, None)
            except Exception as error:  # of one study, or a read-only database
                if warned.get(name) != str(error):
                    warned[name] = str(error)
                    _logger.warning("study %s: cannot write its page (%s)", name, error)
        if stop.wait(seconds):
            return
