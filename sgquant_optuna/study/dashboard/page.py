"""Writes a study's page: its note and its plots, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from sgquant_optuna.storage.attributes import FINAL_ATTR, PAGE_ATTR, RECORD_ATTR
from sgquant_optuna.storage.lease import exclusive
from sgquant_optuna.study.dashboard.notes import Place, study_note
from sgquant_optuna.study.dashboard.study_files import are_files_missing, put_study_file
from sgquant_optuna.study.figures import INSTALL_HINT, can_draw, figures
from sgquant_optuna.study.measurements import measurements
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.report import report
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.trial_result import TrialScore

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore

_LAYOUT = 4  # raised when pages are made otherwise, so that old ones are written anew
_logger = logging.getLogger(__name__)


def write_page(
    study: optuna.Study,
    artifact_store: ArtifactStore,
    *,
    place: Place | None = None,
    check_files: bool = False,
) -> bool:
    """Write the note and the plots of a study, unless they are up to date.

    A note that a person has edited stays as it is. Of several processes that call this at once,
    one writes and the others find it done.

    Args:
        study:
            A study of our objective; of others nothing is written.
        artifact_store:
            Store of the plots.
        place:
            Storage and files that the note names.
        check_files:
            Whether to write them again where a plot is missing in this store.

    Returns:
        Whether this call wrote it.

    Raises:
        StudyMismatchError:
            If another version of this package wrote the study's record.
    """
    if RECORD_ATTR not in study.user_attrs:
        return False
    state = _state(study)
    if state is None:
        return False

    def is_up_to_date() -> bool:
        same = _page(study).get("state") == state
        return same and not (check_files and are_files_missing(study, artifact_store))

    if is_up_to_date():
        return False
    with exclusive(study, "dashboard page", unless=is_up_to_date) as mine:
        if mine:
            _write(study, artifact_store, place, state)
    return mine


def _write(
    study: optuna.Study, artifact_store: ArtifactStore, place: Place | None, state: str
) -> None:
    from optuna_dashboard import get_note, save_note

    images = {}
    drawn = figures(measurements(study)) if can_draw() else {}
    for name, (title, png) in drawn.items():
        artifact_id = put_study_file(study, artifact_store, f"{name}.png", png)
        # The state in the address makes a browser fetch the new image.
        images[title] = f"/artifacts/{study._study_id}/{artifact_id}?{state[:8]}"
    note = study_note(
        report(study),
        images,
        place=place,
        hint="" if drawn else INSTALL_HINT,
        has_plan=SearchPlan.is_in(study),
        own=SearchPlan.own_models_of(study),
    )
    present, ours = get_note(study), _page(study).get("note")
    if not present or _digest(present) == ours:
        if present != note:
            save_note(study, note)
        ours = _digest(note)
    else:
        _logger.info("study %s: its note was edited and stays", study.study_name)
    study._storage.set_study_system_attr(
        study._study_id, PAGE_ATTR, {"state": state, "note": ours}
    )


def _state(study: optuna.Study) -> str | None:
    """Tell from what the page would be made; ``None`` if no trial is finished."""
    rows = trial_rows(study, TrialScore)
    finished = [row.number for row in rows if row.state == TrialState.COMPLETE]
    if not finished:
        return None
    described = [_LAYOUT, finished, study.user_attrs.get(FINAL_ATTR)]
    return _digest(json.dumps([*described, can_draw()]))


def _page(study: optuna.Study) -> dict[str, Any]:
    page = study._storage.get_study_system_attrs(study._study_id).get(PAGE_ATTR)
    return page if isinstance(page, dict) else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
