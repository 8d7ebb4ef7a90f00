"""Predictions of many configurations and trainings on all nodes, packed into a small file.

A file holds no labels and no masks: those are read from the data set again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch_geometric.data import Data

from sgquant_optuna.cli.plan_options import plan_of_options
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import PaperModel
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.trained_models import load_plan_graph
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.search_space import BitWidthSearchSpace

FOLDER = Path(__file__).parent / "data"
CODE_OF_ONE = 16  # codes are roots: fine where scores are close and predictions change
_LARGEST_CODE = 255


@dataclass(frozen=True)
class PredictionTable:
    """What full precision and quantized models predict at each node.

    Args:
        model:
            Name of the model.
        dataset:
            Name of the graph.
        scores:
            Scores of full precision, ``[S, N, C]`` float32: zero for the predicted class and
            negative for the others, rounded by :func:`rounded`.
        classes:
            Classes that the quantized models predict, ``[configurations, S, N]`` int8.
        memory:
            Honest bytes of each configuration.
        command:
            Command that made it.
        training:
            Settings of the full-precision training and of the features.
    """

    model: str
    dataset: str
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int8]
    memory: npt.NDArray[np.float64]
    command: str
    training: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of model and graph."""
        return f"{self.model} {self.dataset}"

    @property
    def trainings(self) -> int:
        """Number of trainings S."""
        return len(self.scores)

    def save(self, path: Path) -> None:
        """Write the file."""
        full = self.scores.argmax(axis=2)
        codes = np.rint(np.sqrt(-self.scores) * CODE_OF_ONE).astype(np.uint8)
        names = ("model", "dataset", "command", "training")
        description = {name: getattr(self, name) for name in names}
        path.parent.mkdir(parents=True, exist_ok=True)
        num_classes = self.scores.shape[2]
        np.savez_compressed(
            path,
            codes=codes,
            # Mostly zeros; what changes at a node in one configuration often does in others.
            changed=((self.classes - full) % num_classes).astype(np.uint8).transpose(2, 1, 0),
            memory=self.memory,
            description=np.array(json.dumps(description)),
        )

    @classmethod
    def load(cls, path: Path) -> PredictionTable:
        """Read a file that :meth:`save` wrote."""
        with np.load(path) as table:
            scores = -np.square(table["codes"].astype(np.float32) / CODE_OF_ONE)
            changed = table["changed"].transpose(2, 1, 0).astype(np.int64)
            memory = table["memory"]
            description = json.loads(str(table["description"]))
        classes = (scores.argmax(axis=2) + changed) % scores.shape[2]
        return cls(scores=scores, classes=classes.astype(np.int8), memory=memory, **description)


def rounded(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Round scores ``[S, N, C]`` as they are stored; the predicted class stays the only best."""
    below = scores.max(axis=2, keepdims=True) - scores
    codes = np.rint(np.sqrt(below) * CODE_OF_ONE).clip(1, _LARGEST_CODE)
    np.put_along_axis(codes, scores.argmax(axis=2)[:, :, None], 0, axis=2)
    return -np.square(codes / CODE_OF_ONE).astype(np.float32)


def collect(
    plan: SearchPlan,
    data: Data,
    *,
    configurations: int,
    trainings: int,
    command: str,
    log: Callable[[str], None] = print,
) -> PredictionTable:
    """Train full-precision models and finetune each with many configurations.

    Args:
        plan:
            Settings of model, training and search.
        data:
            Graph of the plan.
        configurations:
            Number of configurations.
        trainings:
            Number of full-precision models, from different seeds.
        command:
            Command that is kept in the table.
        log:
            Function that gets a line every ten configurations.
    """
    assert plan.model is not None and plan.dataset is not None  # both by name
    num_classes = int(data.y.max()) + 1
    models = []
    for seed in range(trainings):
        model = make_model(plan.model, data.num_features, num_classes, seed=seed)
        fit(model, data, plan.training, seed=seed)
        models.append(model)
    log(f"{plan.model} {plan.dataset}: {trainings} models are trained")
    objective = QuantizationObjective(models, data, plan)
    scores = np.stack(list(_scores(objective, objective.full_precision)))
    classes, memory = [], []
    for params in random_configurations(objective.search_space, configurations):
        bits = objective.search_space.from_params(params)
        found = [one.argmax(axis=1) for one in _scores(objective, bits)]
        classes.append(np.stack(found).astype(np.int8))
        memory.append(objective.memory_bytes(params))
        if len(classes) % 10 == 0:
            log(f"{plan.model} {plan.dataset}: {len(classes)} configurations")
    return PredictionTable(
        model=plan.model,
        dataset=plan.dataset,
        scores=rounded(scores),
        classes=np.stack(classes),
        memory=np.array(memory),
        command=command,
        training={"normalize_features": plan.normalize_features, **plan.training.to_dict()},
    )


def plan_and_graph(model: PaperModel, dataset: str, root: str | None) -> tuple[SearchPlan, Data]:
    """Return the settings of ``sgquant search`` for model and data set, and the graph."""
    plan = plan_of_options(model=model, dataset=dataset)
    return plan, load_plan_graph(plan, root)


def random_configurations(
    space: BitWidthSearchSpace, count: int, *, seed: int = 7
) -> Sequence[dict[str, int]]:
    """Draw different configurations, as a search finds them.

    The first have one width. Of each three others, two have widths about a common one, as those
    that matter have, and the third has any.
    """
    generator = np.random.default_rng(seed)
    names, widths = list(space.distributions), list(space.candidates)
    found = [dict.fromkeys(names, width) for width in widths]
    while len(found) < count:
        if len(found) % 3:
            center = generator.integers(len(widths) - 1)
            steps = generator.choice((-1, 0, 1), size=len(names), p=(0.25, 0.5, 0.25))
            levels = (center + steps).clip(0, len(widths) - 1)
        else:
            levels = generator.integers(len(widths), size=len(names))
        one = {name: int(widths[level]) for name, level in zip(names, levels, strict=True)}
        if one not in found:
            found.append(one)
    return found[:count]


def _scores(
    objective: QuantizationObjective, bits: BitWidths
) -> Iterator[npt.NDArray[np.float32]]:
    tuned = objective.finetuned(bits)
    for calibrated, (model, _) in zip(objective.models, tuned, strict=True):
        yield calibrated.scores(model).numpy()
