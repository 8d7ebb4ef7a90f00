"""From a study to files: the packed model of a trial, or its assignment of bit widths alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from sgquant_optuna.assignment import Assignment
from sgquant_optuna.bit_widths import BitWidths
from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.final_result import FinalResult
from sgquant_optuna.fingerprint import check_fingerprint
from sgquant_optuna.out_file import check_out_file
from sgquant_optuna.packed.export import ExportedModel, export_packed
from sgquant_optuna.search_plan import SearchPlan
from sgquant_optuna.selection import measured_trials, ranked_trials
from sgquant_optuna.study_record import StudyRecord
from sgquant_optuna.trained_models import shared_models

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

    from sgquant_optuna.objective import QuantizationObjective


@dataclass(frozen=True)
class ExportedTrial:
    """A trial that was measured again and written. Accuracies are on validation nodes, in percent.

    Args:
        trial:
            Number of the trial.
        model:
            What was written.
        trial_accuracy:
            What the trial saw: the mean over its trainings.
        reproduced_accuracy:
            The same mean, measured again now.
        accuracy:
            Of the packed model, the first of those trainings.
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
) -> ExportedTrial:
    """Finetune as a trial did, and write its first model packed.

    Args:
        study:
            A study of ``sgquant search``.
        path:
            File to write.
        trial:
            Which trial; by default that of the final report, else the best.
        root:
            Folder of data sets.
        artifact_store:
            Where the study's trained models are; without it, or if they are not there, they are
            trained again from the same seeds.
        objective:
            That of the study, on the CPU, if it is at hand: nothing is loaded or trained again.

    Raises:
        ArtifactError:
            If the trained models were altered.
        PackingError:
            If the packed model does not do what the fake-quantized one does.
        StudyMismatchError:
            If the study has no settings, or graph, model or weights are not those it was made of.
        StudyNotFoundError:
            If the study is not of our objective, or has no such finished trial.
        ValueError:
            If the file cannot be written.
    """
    check_out_file(path)
    record, chosen = _record(study), _choose(study, trial)
    plan = SearchPlan.load(study)
    if objective is None:
        data = plan.load_graph(root)
        models = None
        if artifact_store is not None:
            models = shared_models(plan, data, study, artifact_store)
        objective = plan.objective(models or plan.train_all(data), data)
    check_fingerprint(study.study_name, record.fingerprint, objective.fingerprint)
    bits = BitWidths.from_dict(chosen.user_attrs["bit_widths"])
    trainings = objective.finetuned(bits)
    model, result = next(trainings)
    reproduced = fmean([result.accuracy, *(other.accuracy for _, other in trainings)])
    exported = export_packed(
        model,
        objective.graph.data,
        path,
        layout=objective.layout,
        provenance={
            **_source(study, chosen, record),
            "dataset": plan.dataset,
            "seed": plan.seed,
            "plan": asdict(plan),
            "degree_edges": list(objective.degree_edges),
            "fingerprint": objective.fingerprint,
            "reproduced_accuracy": reproduced,
            "accuracy": result.accuracy,
        },
    )
    return ExportedTrial(
        chosen.number,
        exported,
        float(chosen.user_attrs["accuracy"]),
        reproduced,
        result.accuracy,
    )


def export_assignment(
    study: optuna.Study, path: str | Path, *, trial: int | None = None
) -> Assignment:
    """Write the bit widths of a trial as JSON, from the study alone.

    Args:
        study:
            A study of ``QuantizationObjective``.
        path:
            File to write.
        trial:
            Which trial; by default that of the final report, else the best.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective, or has no such finished trial.
        ValueError:
            If the file cannot be written.
    """
    from sgquant_optuna.quantization.config import QuantizerConfig

    record, chosen = _record(study), _choose(study, trial)
    prefix = "quantizer "
    settings = {
        name.removeprefix(prefix): value
        for name, value in record.fingerprint["protocol"].items()
        if name.startswith(prefix)
    }
    assignment = Assignment(
        BitWidths.from_dict(chosen.user_attrs["bit_widths"]),
        QuantizerConfig(**settings),
        record.degree_edges,
        record.fingerprint["space"]["granularity"],
        record.fingerprint,
        _source(study, chosen, record),
    )
    assignment.save(path)
    return assignment


def _record(study: optuna.Study) -> StudyRecord:
    record = StudyRecord.load(study)
    if record is None:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected a study of QuantizationObjective, got another"
        )
    return record


def _choose(study: optuna.Study, number: int | None) -> FrozenTrial:
    finished = {trial.number: trial for trial in measured_trials(study)}
    if number is None:
        final = FinalResult.load(study)
        ranked = ranked_trials(study, _record(study).max_drop)
        if final is not None and ranked[0].number in (final.trial, *final.others):
            return finished[final.trial]
        return ranked[0]
    if number not in finished:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected a finished trial, got {number}; finished are "
            f"{', '.join(map(str, finished)) or 'none'}"
        )
    return finished[number]


def _source(study: optuna.Study, trial: FrozenTrial, record: StudyRecord) -> dict[str, Any]:
    final = FinalResult.load(study)
    return {
        "study": study.study_name,
        "trial": trial.number,
        "full_precision_accuracy": record.full_precision_accuracy,
        "trial_accuracy": trial.user_attrs["accuracy"],
        "accuracy_drop": trial.user_attrs["accuracy_drop"],
        "max_drop": record.max_drop,
        "final": asdict(final) if final is not None and final.trial == trial.number else None,
    }
