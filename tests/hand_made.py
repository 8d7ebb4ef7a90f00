"""Studies of our objective made by hand: no model, no training, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize, honest_memory, paper_memory
from sgquant_optuna.quantization.sites import BitWidths, Site
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.search_space import BitWidthSearchSpace
from sgquant_optuna.study.stored_values import compact

WIDTHS = (1, 2, 4, 8)
LIMIT = 0.5
FULL = 90.0  # validation accuracy at full precision, in percent
NODES = 1000


def layout(*, layers: int = 2, buckets: int = 2) -> FeatureLayout:
    """Layers with 64 features of 1,000 nodes in degree buckets of equal size."""
    rows = NODES // buckets
    sites = {
        Site(f"conv{layer}", "embedding", bucket): SiteSize(num_rows=rows, num_columns=64)
        for layer in range(1, layers + 1)
        for bucket in range(buckets)
    }
    return FeatureLayout(sites, num_nodes=NODES, num_buckets=buckets)


def new_study(
    storage: BaseStorage | None = None,
    *,
    name: str = "hand-made",
    mode: str = "constrained",
    planned: int | None = None,
    made: FeatureLayout | None = None,
    budget: float | None = None,
) -> optuna.Study:
    """A study with a record and no trial; one with a budget is of that mode."""
    made = made or layout()
    mode = mode if budget is None else "budget"
    memory, lost = "memory (bytes)", "expected drop (points)"
    names = {"constrained": [memory], "pareto": [memory, lost], "budget": [lost]}[mode]
    study = optuna.create_study(
        storage=storage, study_name=name, directions=["minimize"] * len(names)
    )
    study.set_metric_names(names)
    space = BitWidthSearchSpace(made.sizes, candidates=WIDTHS)
    StudyRecord(
        fingerprint={"space": {**space.to_dict(), "degree_edges": [4]}},
        layout=made,
        degree_edges=tuple(range(4, 4 * made.num_buckets, 4)),
        full_precision_accuracy=FULL,
        max_drop=LIMIT,
        confidence=0.9,
        mode=mode,
        budget_bytes=budget,
    ).save(study)
    if planned is not None:
        study.set_user_attr("sgquant:plan", {"version": 1, "n_trials": planned})
    return study


def _without_evidence(drop: float) -> dict[str, Any]:
    """What a trial writes whose only evidence is the drop on validation nodes."""
    return {
        "flips": drop,
        "trainings": 1,
        "evidence": None,
        "estimated_drop": drop,
        "drop_bound": drop,
    }


def measured(
    widths: Sequence[int],
    drop: float,
    *,
    mode: str = "constrained",
    ended: datetime | None = None,
    seconds: float = 1.0,
    made: FeatureLayout | None = None,
    budget: float | None = None,
    **attrs: Any,
) -> FrozenTrial:
    """A trial that measured these widths, one a site, and lost ``drop`` points."""
    made = made or layout()
    bits = BitWidths(dict(zip(made.sizes, widths, strict=True)))
    honest, paper = honest_memory(made, bits), paper_memory(made, bits)
    value = honest.memory_bytes
    if mode == "constrained" and drop > LIMIT:
        value = honest.full_precision_bytes * (1 + drop - LIMIT)
    violation = drop - LIMIT
    if budget is not None:
        violation = honest.memory_bytes / budget - 1
        value = drop if violation <= 0 else 100 * (1 + violation)
    params = BitWidthSearchSpace(made.sizes, candidates=WIDTHS).params_of(bits)
    trial = create_trial(
        state=TrialState.COMPLETE,
        values=[value, drop] if mode == "pareto" else [value],
        params=params,
        distributions={name: CategoricalDistribution(WIDTHS) for name in params},
        user_attrs={
            "accuracy": FULL - drop,
            "accuracy_drop": drop,
            **_without_evidence(drop),
            "memory_bytes": honest.memory_bytes,
            "saving": honest.saving,
            "paper_memory_bytes": paper.memory_bytes,
            "paper_saving": paper.saving,
            "average_bits": paper.average_bits,
            "bit_widths": compact(bits.to_dict()),
            "seconds": seconds,
            **attrs,
        },
        system_attrs={} if mode == "pareto" else {"constraints": [violation]},
    )
    trial.datetime_complete = ended or datetime.now()
    trial.datetime_start = trial.datetime_complete - timedelta(seconds=seconds)
    return trial


def final_result(
    full: Sequence[float],
    quantized: Sequence[float],
    *,
    trial: int = 1,
    others: Sequence[int] = (),
) -> FinalResult:
    """A final report of a trial that holds, with these test accuracies of retrained models."""
    return FinalResult(
        trial=trial,
        holds=True,
        seeds=len(full),
        retrained=True,
        validation_drop=0.1,
        flips=2.1,
        estimated_drop=0.2,
        drop_bound=0.4,
        full_precision_test=tuple(full),
        quantized_test=tuple(quantized),
        test_drop_interval=(-0.5, 1.5),
        others=tuple(others),
    )
