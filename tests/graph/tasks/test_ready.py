"""Ready tasks: what they take, what they refuse, and how graphs are joined."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import RandomLinkSplit

from sgquant_optuna import fit, tasks
from sgquant_optuna.exceptions import GraphError, ModelError, TaskError


def small_graph(nodes=6, **columns):
    edges = torch.tensor([[*range(nodes - 1)], [*range(1, nodes)]])
    x = torch.arange(2.0 * nodes).reshape(nodes, 2)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1), **columns)


def masks(count):
    at = torch.arange(count)
    return {"train_mask": at < count // 2, "val_mask": at >= count // 2}


class OneLayer(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.conv = GCNConv(2, outputs)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


@pytest.mark.parametrize("make", [tasks.node_classification, tasks.multi_label, tasks.regression])
def test_an_unknown_metric_is_refused_with_the_known_ones(make):
    with pytest.raises(TaskError, match="expected one of .*got 'best'"):
        make("best")


@pytest.mark.parametrize(
    ("task", "y", "expected"),
    [
        (tasks.multi_label(), torch.zeros(6), r"0 or 1, \[6, labels\]"),
        (tasks.multi_label(), torch.full((6, 3), 2), r"0 or 1, \[6, labels\]"),
        (tasks.multi_label(), torch.zeros(5, 3), r"0 or 1, \[6, labels\]"),
        (tasks.regression(), torch.zeros(6, dtype=torch.long), r"float \[6\]"),
        (tasks.regression(), torch.zeros(4), r"float \[6\]"),
        (tasks.regression(), torch.full((6,), torch.nan), "a target for each node"),
        (tasks.node_classification(), torch.zeros(6), r"int64 \[6\]"),
    ],
)
def test_labels_of_another_shape_are_refused(task, y, expected):
    with pytest.raises(GraphError, match=f"column y: expected {expected}"):
        task.check(small_graph(y=y, **masks(6)))


@pytest.mark.parametrize(
    ("task", "y", "outputs", "expected"),
    [
        (tasks.multi_label(), torch.ones(6, 3), 2, r"a logit of each label, float \[6, 3\]"),
        (tasks.regression(), torch.ones(6), 2, r"values, float \[6\]"),
    ],
)
def test_outputs_of_another_shape_are_refused(task, y, outputs, expected):
    with pytest.raises(ModelError, match=f"OneLayer: expected {expected}, got float32"):
        fit(OneLayer(outputs), small_graph(y=y, **masks(6)), task=task)


def test_targets_outside_training_and_validation_are_hidden():
    mask = torch.tensor([True] * 3 + [False] * 3)
    columns = {"train_mask": mask, "val_mask": ~mask & (torch.arange(6) < 5)}
    values = tasks.regression().without_test(small_graph(y=torch.ones(6), **columns))
    assert values.y[:5].eq(1).all()
    assert values.y[5].isnan()
    labels = tasks.multi_label().without_test(small_graph(y=torch.ones(6, 2).bool(), **columns))
    assert labels.y[:5].eq(1).all()
    assert labels.y[5].eq(-1).all()


def test_joined_graphs_are_a_union_with_masks_of_graphs():
    made = [small_graph(n, y=torch.tensor([n % 2])) for n in (3, 4, 5)]
    joined = tasks.joined_graphs(made[:1], made[1:2], made[2:])
    tasks.graph_classification().check(joined)
    assert joined.batch.tolist() == [0] * 3 + [1] * 4 + [2] * 5
    assert joined.y.tolist() == [1, 0, 1]
    assert joined.val_mask.tolist() == [False, True, False]
    assert int(joined.edge_index.max()) == 11


def test_inductive_graphs_are_a_union_with_masks_of_nodes():
    made = [small_graph(n, y=torch.zeros(n, dtype=torch.long)) for n in (3, 4, 5)]
    joined = tasks.inductive(made[0], [made[1]], [made[2]])
    tasks.node_classification().check(joined)
    assert joined.train_mask.sum() == 3
    assert joined.test_mask.tolist() == [False] * 7 + [True] * 5


def test_links_of_a_random_split_are_joined():
    graph = small_graph(40)
    split = RandomLinkSplit(
        num_val=0.2, num_test=0.2, is_undirected=True, add_negative_train_samples=True
    )
    joined = tasks.joined_links(*split(graph))
    tasks.link_prediction().check(joined)
    assert joined.edge_label_index.shape[1] == len(joined.edge_label) == len(joined.test_mask)
    message_edges = set(map(tuple, joined.edge_index.T.tolist()))
    tested = joined.edge_label_index[:, joined.test_mask & (joined.edge_label > 0.5)]
    assert not message_edges & set(map(tuple, tested.T.tolist()))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([], [small_graph(y=torch.zeros(1))], "train_mask: expected at least one, got none"),
        (
            [small_graph()],
            [small_graph()],
            "number 0: column y: expected a target in each graph, got none",
        ),
        ([(1, 2)], [small_graph()], "expected torch_geometric.data.Data, got tuple"),
        (3, [small_graph()], "expected a list, a data set or a loader of graphs, got int"),
        (
            [small_graph(y=torch.zeros(1))],
            [Data(x=torch.ones(2, 5), edge_index=torch.zeros(2, 0).long(), y=torch.zeros(1))],
            "same number of features in all, got 2 and 5",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(train, val, message):
    with pytest.raises(GraphError, match=message):
        tasks.joined_graphs(train, val)


def test_tasks_are_offered_by_the_package_alone():
    code = "import sgquant_optuna as sgq; print(sgq.tasks.regression('RMSE').metric.name)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "RMSE\n"


@pytest.mark.parametrize(
    "task",
    [
        tasks.node_classification(node_type="paper"),
        tasks.multi_label("ROC-AUC"),
        tasks.regression("RMSE"),
        tasks.graph_classification(),
        tasks.graph_regression(),
        tasks.graph_multi_label(),
        tasks.link_prediction("MRR"),
        tasks.link_prediction("Hits@5"),
    ],
    ids=lambda task: f"{task.name}, {task.metric.name}",
)
def test_a_ready_task_can_be_copied_to_other_processes(task):
    copied = pickle.loads(pickle.dumps(task))
    assert (copied.name, copied.items, copied.node_type) == (task.name, task.items, task.node_type)
    assert copied.describe_metric() == task.describe_metric()
    function = copied.metric.function
    assert getattr(function, "args", None) == getattr(task.metric.function, "args", None)
