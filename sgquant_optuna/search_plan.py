"""All settings of a search, in plain values, so that any machine can rebuild it from the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from torch import nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.graphs import load_graph
from sgquant_optuna.models import MODELS, make_model
from sgquant_optuna.objective import Mode, QuantizationObjective
from sgquant_optuna.quantization.config import QuantizerConfig
from sgquant_optuna.search_space import Encoding, check_candidates, parse_granularity
from sgquant_optuna.stored_values import reading
from sgquant_optuna.training import FINETUNING, TrainingConfig, fit

PLAN_ATTR = "sgquant:plan"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What ``sgquant search`` was asked for.

    Args:
        model:
            Model of the paper: ``"gcn"``, ``"agnn"`` or ``"gat"``.
        dataset:
            Name of the graph.
        n_trials:
            Trials of the study.
        max_drop:
            Largest feasible drop of validation accuracy, in percentage points.
        mode:
            ``"constrained"`` or ``"pareto"``.
        granularity:
            ``"uniform"``, or any of ``lwq``, ``cwq`` and ``taq`` joined by ``+``.
        bit_widths:
            Candidate widths.
        degree_edges:
            Number of degree buckets, or the lowest degree of each but the first.
        frozen:
            Width of sites that are not searched.
        encoding:
            ``"categorical"`` or ``"ordinal"`` parameters.
        exact_inputs:
            Whether inputs that a lossless store holds in as few bytes stay out of the search.
        quantizer:
            Rounding, range estimator and axis.
        training:
            Of the full-precision models.
        finetuning:
            Of each trial.
        models:
            Trainings that each trial is measured on.
        final_seeds:
            Fresh trainings of the final report.
        seed:
            Of split, weights, finetuning and sampler.

    Raises:
        ValueError:
            If a setting is out of range.
    """

    model: str
    dataset: str
    n_trials: int
    max_drop: float
    mode: Mode
    granularity: str
    bit_widths: Sequence[int]
    degree_edges: Sequence[int] | int
    encoding: Encoding = "categorical"
    frozen: Mapping[str, int] = field(default_factory=dict)
    exact_inputs: bool = True
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    finetuning: TrainingConfig = FINETUNING
    models: int = 3
    final_seeds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what needs no graph, so that a mistake shows before anything slow."""
        if self.model not in MODELS:
            raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {self.model!r}")
        if self.max_drop < 0:
            raise ValueError(f"max_drop: expected percentage points >= 0, got {self.max_drop}")
        check_candidates(self.bit_widths)
        parse_granularity(self.granularity)

    @property
    def study_name(self) -> str:
        """Name of the study where none is given."""
        return f"{self.model}-{self.dataset}-{self.granularity}"

    def load_graph(self, root: str | Path | None = None, *, device: str = "cpu") -> Data:
        """Load the graph; ``root`` is the folder of data sets."""
        return load_graph(self.dataset, root, seed=self.seed).to(device)

    @property
    def training_seeds(self) -> range:
        """Seeds of the models that each trial is measured on."""
        return range(self.seed, self.seed + self.models)

    def untrained(self, data: Data, seed: int) -> nn.Module:
        """Make the model as it is before its training from a seed."""
        classes = int(data.y.max()) + 1
        return make_model(self.model, data.num_features, classes, seed=seed).to(data.x.device)

    def train(self, data: Data, seed: int) -> nn.Module:
        """Train a full-precision model from a seed."""
        model = self.untrained(data, seed)
        fit(model, data, self.training, seed=seed)
        return model

    def train_all(self, data: Data) -> list[nn.Module]:
        """Train the models that each trial is measured on."""
        return [self.train(data, seed) for seed in self.training_seeds]

    def trains_otherwise(self, other: SearchPlan) -> str:
        """Tell where another plan trains other full-precision models; empty if it does not."""
        mine, others = (
            {
                **{name: getattr(plan, name) for name in ("model", "dataset", "seed", "models")},
                **{f"training {key}": value for key, value in plan.training.to_dict().items()},
            }
            for plan in (self, other)
        )
        return ", ".join(
            f"{key}: was {others[key]}, is {value}"
            for key, value in mine.items()
            if value != others[key]
        )

    def objective(self, models: Sequence[nn.Module], data: Data) -> QuantizationObjective:
        """Make the objective of the trained models."""
        return QuantizationObjective(
            models,
            data,
            max_drop=self.max_drop,
            mode=self.mode,
            granularity=self.granularity,
            bit_widths=self.bit_widths,
            degree_edges=self.degree_edges,
            frozen=self.frozen,
            exact_inputs=self.exact_inputs,
            encoding=self.encoding,
            quantizer=self.quantizer,
            finetuning=self.finetuning,
            seed=self.seed,
        )

    def save(self, study: optuna.Study) -> None:
        """Write the plan into the study's user attributes, unless it is there already."""
        plan = json.loads(json.dumps({"version": _VERSION, **asdict(self)}))
        if study.user_attrs.get(PLAN_ATTR) != plan:
            study.set_user_attr(PLAN_ATTR, plan)

    @classmethod
    def load(cls, study: optuna.Study) -> SearchPlan:
        """Read the plan of a study.

        Raises:
            StudyMismatchError:
                If the study was made by other means, or by another version of this package.
        """
        plan: Mapping[str, Any] | None = study.user_attrs.get(PLAN_ATTR)
        if plan is None:
            raise StudyMismatchError(
                f"study {study.study_name!r}: expected one made by `sgquant search` or `init`, "
                f"got one without their settings; rebuild its objective in Python instead"
            )
        if plan.get("version") != _VERSION:
            raise StudyMismatchError(
                f"study {study.study_name!r}: expected settings of version {_VERSION}, got "
                f"{plan.get('version')}; use the version of sgquant_optuna that made it"
            )
        values = {key: value for key, value in plan.items() if key != "version"}
        with reading("settings", study):
            return cls(
                **{
                    **values,
                    "quantizer": QuantizerConfig(**values["quantizer"]),
                    "training": TrainingConfig(**values["training"]),
                    "finetuning": TrainingConfig(**values["finetuning"]),
                }
            )
