"""Training, validation and test on graphs of their own: from the search to a file of no graph."""

import pytest
import torch
from torch_geometric.data import Data

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.graph.training_config import TrainingConfig
from tests.search.test_tasks import Gin, Sage, noisy_ring
from tests.small_search import searched

GRAPHS = {"train": (60, 40), "val": (50, 30), "test": (70, 20)}


def node_graphs():
    """Two graphs a split; a node's class is told by its own features and its neighbours'."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for split, sizes in GRAPHS.items():
        made[split] = []
        for nodes in sizes:
            graph = noisy_ring(nodes, generator)
            graph.y = (graph.x[:, 0] > 0).long()
            made[split].append(graph)
    return made


def molecules():
    generator, made = torch.Generator().manual_seed(0), {}
    for split, count in (("train", 30), ("val", 20), ("test", 20)):
        made[split] = []
        for number in range(count):
            graph = noisy_ring(6 + number % 5, generator)
            graph.y = (graph.x.sum(dim=0)[:1] > 0).long()
            made[split].append(graph)
    return made


def on_union(model, objective, data, mask):
    """Metric of a fake-quantized model on the items of a mask."""
    task = objective.task
    edges = objective.degree_edges
    sgq.bind(model, sgq.AddDegreeBuckets(edges)(data.clone()))
    with torch.no_grad():
        outputs = objective.forward(model.eval(), data)
    return task.metric(outputs[mask], task.targets(data)[mask])


@pytest.mark.parametrize(
    ("task", "make", "join", "build"),
    [
        (tasks.node_classification(), node_graphs, tasks.inductive, Sage),
        (tasks.graph_classification(), molecules, tasks.joined_graphs, Gin),
    ],
    ids=["nodes", "graphs"],
)
def test_the_exported_model_has_the_accuracy_of_the_search_on_each_graph(
    task, make, join, build, tmp_path
):
    graphs = make()
    data = join(graphs["train"], graphs["val"], graphs["test"])

    def trained(seed):
        torch.manual_seed(seed)
        model = build(data.num_features, 2)
        sgq.fit(model, data, TrainingConfig(epochs=30), seed=seed, task=task)
        return model

    study, objective = searched([trained(0)], data, task, tmp_path, n_trials=2)
    final = sgq.final_report(study, objective, data, seeds=2, retrain=trained)
    assert "test" in str(sgq.report(study)) and len(final.quantized_test) >= 2
    done = sgq.export_study(study, tmp_path / "m", objective=objective, with_features=False)
    packed = sgq.load_packed(tmp_path / "m", build(data.num_features, 2))
    bits = packed.bit_widths
    model, result = next(iter(objective.finetuned(bits)))
    assert result.accuracy == done.accuracy

    def metric_of(given):
        """Metric on single graphs, each called by itself."""
        outputs = torch.cat([packed(one if task.items == "node" else [one]) for one in given])
        return task.metric(outputs, torch.cat([one.y for one in given]))

    def shown(split):
        return [Data(x=one.x, edge_index=one.edge_index, y=one.y) for one in graphs[split]]

    assert metric_of(shown("val")) == pytest.approx(done.accuracy)
    assert metric_of(shown("test")) == pytest.approx(
        on_union(model, objective, data, data.test_mask)
    )
