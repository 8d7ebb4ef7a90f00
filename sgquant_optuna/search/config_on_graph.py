"""What the settings of an objective come to on a graph."""

from __future__ import annotations

from sgquant_optuna.exceptions import TaskError
from sgquant_optuna.graph.degree_buckets import quantile_degree_edges
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.quantization.memory import FeatureLayout, exact_inputs
from sgquant_optuna.study.plan import ObjectiveConfig
from sgquant_optuna.study.search_space import parse_granularity


def check_axis(task: Task, data: Graph, config: ObjectiveConfig) -> None:
    """Refuse ranges of single nodes where each node's batch has other rows."""
    size = task.batch_size_of(data)
    if config.quantizer.axis == "row" and size is not None:
        raise TaskError(
            f"quantizer: expected a range axis that does not tell single nodes apart, got axis "
            f"row with mini-batches of {size} graphs; give the task batch_size=None, or choose "
            f"the axis tensor, bucket or column"
        )


def degree_edges_of(data: Graph, config: ObjectiveConfig) -> tuple[int, ...]:
    """Return the degrees at which the buckets of a graph begin; none without buckets."""
    if "bucket" not in parse_granularity(config.granularity) and config.quantizer.axis != "bucket":
        return ()
    if isinstance(config.degree_edges, int):
        return quantile_degree_edges(data, config.degree_edges)
    return check_degree_edges(config.degree_edges)


def exact_inputs_of(layout: FeatureLayout, config: ObjectiveConfig) -> dict[str, int]:
    """Return the width of each input that is exact at it and needs no search."""
    sites = exact_inputs(layout, config.candidates) if config.exact_inputs else {}
    if len(sites) == len(layout.sizes):
        return {}  # nothing would be left to search
    return {str(site): width for site, width in sites.items()}
