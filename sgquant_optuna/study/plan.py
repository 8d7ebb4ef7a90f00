"""The options of a search, in plain values, so that any machine can rebuild it from the study.

Each option stands here once: the command line reads a :class:`SearchPlan`, the study keeps it, and
the objective takes it as its :class:`ObjectiveConfig`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import index
from typing import TYPE_CHECKING, Literal, get_args

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.graph.degree_edges import DEFAULT_NUM_BUCKETS
from sgquant_optuna.graph.split_choice import Split, check_split
from sgquant_optuna.graph.training_config import (
    FINETUNING,
    PAPER_MODELS,
    PaperModel,
    TrainingConfig,
)
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.storage.attributes import PLAN_ATTR
from sgquant_optuna.study.limit import Limit, plain_drop, share_of
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.search_space import (
    DEFAULT_CANDIDATES,
    Encoding,
    check_candidates,
    parse_granularity,
)
from sgquant_optuna.study.stored_values import compact, reading, stored_fields, stored_mapping
from sgquant_optuna.study.study_reference import StudyReference

if TYPE_CHECKING:
    import optuna

    from sgquant_optuna.sampler.cost_model import CostModelName

Mode = Literal["constrained", "pareto", "budget"]

_VERSION = 3
_ACCURACY = MetricWords()
_OF_TRAINED_MODELS = ("model", "dataset", "normalize_features", "seed", "models", "split")
_OWN = "study file"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is searched, and how each trial of it is measured.

    Args:
        max_drop:
            Largest feasible drop, in the unit of the metric (percentage points for accuracy), or
            a share of its full-precision value such as ``"2%"``; without effect in mode
            ``"budget"``.
        confidence:
            Probability with which the drop of a feasible trial is at most ``max_drop``, in
            [0.5, 1).
        mode:
            ``"constrained"`` (least memory within ``max_drop``), ``"pareto"`` (memory against
            expected drop) or ``"budget"`` (least expected drop within ``budget_bytes``).
        budget_bytes:
            Largest honest memory that is feasible, in bytes; in mode ``"budget"`` only.
        granularity:
            Parts of a site that get a width of their own: ``"uniform"`` for none, or any of
            ``lwq`` (layer), ``cwq`` (component) and ``taq`` (degree bucket) joined by ``+``.
        candidates:
            Bit widths to choose from, of 1-8, 16 and 32.
        degree_edges:
            Number of degree buckets of about equal size, or the lower degrees of the buckets
            above the first (the paper's way, for instance ``(4, 8, 16)``).
        frozen:
            Width of sites that are not searched, by name or by the start of it.
        exact_inputs:
            Whether to keep the graph's own features out of the search where a lossless store is
            as small as any candidate width, as for binary bags of words.
        encoding:
            ``"categorical"`` or ``"ordinal"`` parameters.
        quantizer:
            Rounding, range estimator and axis of every quantizer.
        finetuning:
            Training of each quantized copy. The full-precision model gets the same.
        layers:
            Paths of the layers whose inputs are quantized; all by default.
        attention:
            Paths of the convolutions whose attention is quantized; all known ones by default.
        repeats:
            Finetunings of each model in each trial, from different seeds; a trial that is decided
            before stops earlier.
        first_look:
            Epochs of a short finetuning that may end a hopeless trial before the others; 0 for
            none.
        seed:
            Seed of the finetunings. All trials share it, so that luck is the same for all.
        split:
            Split of a graph with masks ``[N, S]``: its number from 0, or ``"all"`` to measure
            each trial on all of them, with a model that is trained on each.

    Raises:
        ValueError:
            If an option is out of range.
    """

    max_drop: float | str = 0.5
    confidence: float = 0.95
    mode: Mode = "constrained"
    budget_bytes: float | None = None
    granularity: str = "lwq+cwq+taq"
    candidates: Sequence[int] = DEFAULT_CANDIDATES
    degree_edges: Sequence[int] | int = DEFAULT_NUM_BUCKETS
    frozen: Mapping[str, int] = field(default_factory=dict)
    exact_inputs: bool = True
    encoding: Encoding = "categorical"
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    finetuning: TrainingConfig = FINETUNING
    layers: Sequence[str] | None = None
    attention: Sequence[str] | None = None
    repeats: int = 1
    first_look: int = 2
    seed: int = 0
    split: Split | None = None

    def __post_init__(self) -> None:
        """Check what needs no graph, so that a mistake shows before anything slow."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {get_args(Mode)}, got {self.mode!r}")
        object.__setattr__(self, "max_drop", plain_drop(self.max_drop))
        if self.mode == "budget" and share_of(self.max_drop) is not None:
            raise ValueError(
                f"max_drop: expected none with mode 'budget', where it has no effect, got "
                f"{self.max_drop}"
            )
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: expected a number in [0.5, 1), got {self.confidence}")
        if (self.budget_bytes is not None) != (self.mode == "budget"):
            raise ValueError(
                f"budget_bytes: expected with mode 'budget', and there only; got "
                f"{self.budget_bytes} with mode {self.mode!r}"
            )
        if self.budget_bytes is not None and not 0 < self.budget_bytes < math.inf:
            raise ValueError(
                f"budget_bytes: expected a positive number of bytes, got {self.budget_bytes}"
            )
        if self.repeats < 1:
            raise ValueError(f"repeats: expected at least 1, got {self.repeats}")
        if self.first_look < 0:
            raise ValueError(f"first_look: expected epochs >= 0, got {self.first_look}")
        if self.split is not None:
            check_split(self.split)
        parse_granularity(self.granularity)
        # JSON knows lists only: a plan that was read equals the one that was saved.
        object.__setattr__(self, "candidates", check_candidates(self.candidates))
        for name in ("degree_edges", "layers", "attention"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                object.__setattr__(self, name, tuple(value))

    def limit_at(self, full_precision: float, metric: MetricWords = _ACCURACY) -> Limit:
        """Return what makes a trial feasible.

        Args:
            full_precision:
                Value of full precision, which a share is of.
            metric:
                Metric of the task.

        Raises:
            ValueError:
                If ``max_drop`` is a share, and the value is 0.
        """
        return Limit.asked(
            max_drop=self.max_drop,
            budget_bytes=self.budget_bytes,
            metric=metric,
            full_precision=full_precision,
        )

    @property
    def asked_limit(self) -> dict[str, float | str]:
        """The limit by its name, as it was given."""
        if self.budget_bytes is not None:
            return {"budget_bytes": self.budget_bytes}
        return {"max_drop": self.max_drop}

    def metric_names(self, metric: MetricWords = _ACCURACY) -> list[str]:
        """Return the names of the values of a trial, all of them minimised."""
        unit = f" ({metric.drop_unit})" if metric.drop_unit else ""
        memory, drop = "memory (bytes)", f"expected drop{unit}"
        return {"constrained": [memory], "pareto": [memory, drop], "budget": [drop]}[self.mode]


@dataclass(frozen=True, kw_only=True)
class SearchPlan(ObjectiveConfig):
    """What ``sgquant search`` was asked for: an objective's options and what comes before it.

    ``seed`` is that of split, first weights and sampler, too.

    Args:
        model:
            Model of the paper: ``"gcn"``, ``"agnn"`` or ``"gat"``; ``None`` with own models.
        dataset:
            Name of the graph; ``None`` with own models, whose function returns theirs.
        own:
            Reference of the function that returns own models and their graph.
        normalize_features:
            Whether each row of the graph's features is divided by its sum.
        n_trials:
            Trials of the study.
        patience:
            Number of suggestions of the models in a row that promise to save less than 1 % more
            before the search ends early; 0 for never. It ends for one objective alone: in mode
            ``"pareto"`` all trials are measured.
        timeout:
            Seconds after which a worker begins no further trial; ``None`` for no limit.
        training:
            Training of the full-precision models.
        models:
            Trainings that each trial is measured on, from different seeds.
        final_seeds:
            Fresh trainings of the final report.
        acquisition:
            Method of the sampler that ranks the candidates: ``"default"`` or ``"paper"``.
        cost_model:
            Cost model of the default acquisition: ``"blend"``, ``"gaussian_process"`` or
            ``"boosted"``.

    Raises:
        ValueError:
            If an option is out of range.
    """

    model: PaperModel | None = "gcn"
    dataset: str | None = "digits"
    own: StudyReference | None = None
    normalize_features: bool = False
    n_trials: int = 48
    patience: int = 15
    timeout: float | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    models: int = 3
    final_seeds: int = 5
    acquisition: str = "default"
    cost_model: CostModelName = "blend"

    def __post_init__(self) -> None:
        """Check what needs no graph, so that a mistake shows before anything slow."""
        # Imported here because it imports SciPy, which reports need not wait for.
        from sgquant_optuna.sampler.cost_model import check_cost_model
        from sgquant_optuna.sampler.ranking import Acquisition

        super().__post_init__()
        Acquisition(self.acquisition)
        check_cost_model(self.cost_model)
        if self.own is not None:
            if self.model is not None or self.dataset is not None:
                raise ValueError(
                    f"own: expected neither model nor dataset with it, got {self.model!r} and "
                    f"{self.dataset!r}"
                )
        elif self.dataset is None:
            raise ValueError("dataset: expected a name, got None")
        elif self.model not in PAPER_MODELS:
            known = ", ".join(PAPER_MODELS)
            raise ValueError(f"model: expected one of {known}, got {self.model!r}")
        if self.patience < 0:
            raise ValueError(f"patience: expected trials, or 0 for never, got {self.patience}")
        if self.timeout is not None and self.timeout <= 0:
            raise ValueError(f"timeout: expected seconds above 0, got {self.timeout}")

    @property
    def study_name(self) -> str:
        """Name of the study where none is given."""
        named = f"{self.model}-{self.dataset}" if self.own is None else self.own.short_name
        return f"{named}-{self.granularity}"

    @property
    def subject(self) -> str:
        """What is trained, in words."""
        return f"{self.model} on {self.dataset}" if self.own is None else self.own.text

    @property
    def training_seeds(self) -> range:
        """Seeds of the models that each trial is measured on."""
        return range(self.seed, self.seed + self.models)

    def trains_otherwise(self, other: SearchPlan) -> str:
        """Tell where another plan trains other full-precision models; empty if it does not."""
        mine, others = (
            {
                **{name: getattr(plan, name) for name in _OF_TRAINED_MODELS},
                _OWN: None if plan.own is None else plan.own.fingerprint,
                **{f"training {key}": value for key, value in plan.training.to_dict().items()},
            }
            for plan in (self, other)
        )
        return ", ".join(
            f"{key}: was {others[key]}, is {value}"
            for key, value in mine.items()
            if value != others[key]
        )

    def save(self, study: optuna.Study) -> None:
        """Write the plan into the study's user attributes, unless it is there already."""
        plan = compact(json.loads(json.dumps({"version": _VERSION, **asdict(self)})))
        if study.user_attrs.get(PLAN_ATTR) != plan:
            study.set_user_attr(PLAN_ATTR, plan)

    @staticmethod
    def is_in(study: optuna.Study) -> bool:
        """Tell whether a study has a plan; one that was made in Python has none."""
        return PLAN_ATTR in study.user_attrs

    @staticmethod
    def own_models_of(study: optuna.Study) -> StudyReference | None:
        """Return the reference of a study's own models; ``None`` if it has none of them."""
        stored = stored_mapping(study, PLAN_ATTR, what="settings") or {}
        with reading("settings", study):
            return StudyReference(**stored["own"]) if stored.get("own") else None

    @staticmethod
    def planned_trials(study: optuna.Study) -> int | None:
        """Return the trials that a study was planned with; ``None`` if it does not say."""
        stored = stored_mapping(study, PLAN_ATTR, what="settings")
        if stored is None:
            return None
        with reading("settings", study):
            return index(stored["n_trials"])

    @classmethod
    def load(cls, study: optuna.Study) -> SearchPlan:
        """Read the plan of a study.

        Raises:
            StudyMismatchError:
                If the study was made by other means, or by another version of this package.
        """
        values = stored_fields(study, PLAN_ATTR, what="settings", version=_VERSION)
        if values is None:
            raise StudyMismatchError(
                f"study {study.study_name!r}: expected one made by `sgquant search` or `init`, "
                f"got one made in Python, whose model and graph are not in the database; run its "
                f"own script again to go on"
            )
        with reading("settings", study):
            return cls(
                **{
                    **values,
                    "own": StudyReference(**values["own"]) if values.get("own") else None,
                    "quantizer": QuantizerConfig(**values["quantizer"]),
                    "training": TrainingConfig(**values["training"]),
                    "finetuning": TrainingConfig(**values["finetuning"]),
                }
            )
