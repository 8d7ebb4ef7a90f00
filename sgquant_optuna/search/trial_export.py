"""From a study to files: the packed model of a trial, or its assignment of bit widths alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import optuna

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.packed.export import ExportedModel, export_packed
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_file import named_study_file, objective_of
from sgquant_optuna.search.trained_models import load_plan_graph, shared_models, train_models
from sgquant_optuna.storage.out_files import check_out_file
from sgquant_optuna.study.assignment import Assignment
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.selection import Ranked, choose
from sgquant_optuna.study.trial_result import TrialResult

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore


@dataclass(frozen=True)
class ExportedTrial:
    """A trial that was measured again and written. Accuracies are on validation nodes, in percent.

    Args:
        trial:
            Number of the trial.
        model:
            Description of what was written.
        trial_accuracy:
            Accuracy that the trial saw: the mean over its trainings.
        reproduced_accuracy:
            The same mean, measured again now.
        accuracy:
            Accuracy of the packed model, the first of those trainings.
    """

    trial: int
    model: ExportedModel
    trial_accuracy: float
    reproduced_accuracy: float
    accuracy: float


def export_study(
    study: optuna.Study,
    path: str | Path,
    *,
    trial: int | None = None,
    root: str | Path | None = None,
    artifact_store: ArtifactStore | None = None,
    objective: QuantizationObjective | None = None,
    study_file: str | None = None,
    with_features: bool = True,
) -> ExportedTrial:
    """Finetune as a trial did, and write its first model packed.

    Args:
        study:
            Study of :class:`QuantizationObjective`.
        path:
            File to write.
        trial:
            Number of the trial; by default that of the final report, else the best.
        root:
            Folder of data sets.
        artifact_store:
            Store of the study's trained models; without it, or if they are not there, they are
            trained again from the same seeds.
        objective:
            Objective of the study, on the CPU, if it is at hand: nothing is loaded or trained
            again. A study that was made in Python needs it.
        study_file:
            File of the study's own models: ``FILE.py``, ``FILE.py:function`` or
            ``package.module:function``.
        with_features:
            Whether the file holds the features of the graph, or the model alone.

    Raises:
        ArtifactError:
            If the trained models were altered.
        GraphError:
            If a model alone has a range for each node.
        PackingError:
            If the packed model does not do what the fake-quantized one does.
        StudyMismatchError:
            If the study was made in Python and its objective is missing, or graph, model or
            weights are not those it was made of.
        StudyNotFoundError:
            If the study is not of our objective, or has no such finished trial.
        ValueError:
            If the file cannot be written.
    """
    path = check_out_file(path)
    record = StudyRecord.of(study)
    chosen, final = _choose(study, record, trial)
    plan = SearchPlan.load(study) if SearchPlan.is_in(study) else None
    if objective is None:
        objective = _objective(plan, study, path, root, artifact_store, study_file)
    record.check(study, objective.fingerprint)
    count = max(chosen.result.trainings, 1)  # as many as the trial was measured on
    trainings = islice(objective.finetuned(chosen.result.bit_widths), count)
    model, result = next(trainings)
    reproduced = fmean([result.accuracy, *(other.accuracy for _, other in trainings)])
    exported = export_packed(
        model,
        objective.graph.data,
        path,
        layout=objective.layout,
        forward=objective.forward,
        with_features=with_features,
        degree_edges=objective.degree_edges,
        provenance={
            **_source(study, chosen, record, final),
            **({} if plan is None else _origin(plan)),
            "seed": objective.config.seed,
            "fingerprint": objective.fingerprint,
            "reproduced_accuracy": reproduced,
            "accuracy": result.accuracy,
        },
    )
    return ExportedTrial(
        chosen.number, exported, chosen.result.accuracy, reproduced, result.accuracy
    )


def export_assignment(
    study: optuna.Study, path: str | Path, *, trial: int | None = None
) -> Assignment:
    """Write the bit widths of a trial as JSON, from the study alone.

    Args:
        study:
            Study of ``QuantizationObjective``.
        path:
            File to write.
        trial:
            Number of the trial; by default that of the final report, else the best.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective, or has no such finished trial.
        ValueError:
            If the file cannot be written.
    """
    record = StudyRecord.of(study)
    chosen, final = _choose(study, record, trial)
    assignment = Assignment(
        chosen.result.bit_widths,
        record.quantizer,
        record.degree_edges,
        record.granularity,
        record.fingerprint,
        _source(study, chosen, record, final),
    )
    assignment.save(path)
    return assignment


def _origin(plan: SearchPlan) -> dict[str, Any]:
    """Return what tells how to load the graph again, and all other settings."""
    settings = asdict(plan)
    if plan.own is not None:
        return {"plan": settings}
    del settings["own"]
    graph = {"dataset": plan.dataset, "normalize_features": plan.normalize_features}
    # Of all splits, the first model is packed, which is that of the first one.
    split = {} if plan.split is None else {"split": 0 if plan.split == "all" else plan.split}
    return {**graph, **split, "plan": settings}


def _choose(
    study: optuna.Study, record: StudyRecord, number: int | None
) -> tuple[Ranked[TrialResult], FinalResult | None]:
    chosen, final = choose(study, trial_rows(study, TrialResult), record.limit, number=number)
    record.check_sites(study, chosen.number, chosen.result.bit_widths)
    return chosen, final


def _objective(
    plan: SearchPlan | None,
    study: optuna.Study,
    path: Path,
    root: str | Path | None,
    artifact_store: ArtifactStore | None,
    study_file: str | None,
) -> QuantizationObjective:
    if plan is None:
        raise StudyMismatchError(
            f"study {study.study_name!r} was made in Python, so its model is not in the database: "
            f"pack it there by export_study(study, {path.name!r}, objective=objective), or write "
            f"its bit widths alone by --assignment-only"
        )
    own = named_study_file(plan, study.study_name, study_file)
    data = load_plan_graph(plan, root, own=own)
    models = None
    if artifact_store is not None:
        models = shared_models(plan, data, study, artifact_store, own)
    models = models or train_models(plan, data, own)
    return objective_of(models, data, plan, own)


def _source(
    study: optuna.Study,
    trial: Ranked[TrialResult],
    record: StudyRecord,
    final: FinalResult | None,
) -> dict[str, Any]:
    return {
        "study": study.study_name,
        "trial": trial.number,
        "full_precision_accuracy": record.full_precision_accuracy,
        "trial_accuracy": trial.result.accuracy,
        "accuracy_drop": trial.result.accuracy_drop,
        **record.limit.to_dict(),
        "final": None if final is None else asdict(final),
    }
