"""Tasks: what the outputs of a model are answers to, how they are trained and scored."""

from sgquant_optuna.graph.tasks.metrics import (
    Metric,
    hits,
    macro_roc_auc,
    mean_absolute_error,
    micro_f1,
    mrr,
    right_answers,
    roc_auc,
    root_mean_squared_error,
)
from sgquant_optuna.graph.tasks.ready import (
    graph_classification,
    graph_multi_label,
    graph_regression,
    inductive,
    joined_graphs,
    joined_links,
    link_prediction,
    multi_label,
    node_classification,
    regression,
)
from sgquant_optuna.graph.tasks.task import Task

__all__ = [
    "Metric",
    "Task",
    "graph_classification",
    "graph_multi_label",
    "graph_regression",
    "hits",
    "inductive",
    "joined_graphs",
    "joined_links",
    "link_prediction",
    "macro_roc_auc",
    "mean_absolute_error",
    "micro_f1",
    "mrr",
    "multi_label",
    "node_classification",
    "regression",
    "right_answers",
    "roc_auc",
    "root_mean_squared_error",
]
