"""Whole searches of every task: search, promise, final report, export, a packed file that runs."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GINConv, SAGEConv, global_add_pool
from torch_geometric.transforms import RandomLinkSplit

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.study.rows import trial_rows
from tests.small_search import searched


class Sage(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.conv1 = SAGEConv(features, 16)
        self.conv2 = SAGEConv(16, outputs)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Pairs(Sage):
    def forward(self, x, edge_index, edge_label_index):
        z = super().forward(x, edge_index)
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=1)


class Gin(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.conv = GINConv(nn.Sequential(nn.Linear(features, 16), nn.ReLU()))
        self.head = nn.Linear(16, outputs)

    def forward(self, x, edge_index, batch):
        return self.head(global_add_pool(self.conv(x, edge_index), batch)).squeeze(1)


def noisy_ring(nodes, generator, features=8):
    at = torch.arange(nodes)
    chords = torch.randint(nodes, (2, nodes), generator=generator)
    edges = torch.cat([torch.stack([at, (at + 1) % nodes]), chords], dim=1)
    x = torch.randn(nodes, features, generator=generator)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1))


def split(count):
    at = torch.arange(count) % 4
    return {"train_mask": at < 2, "val_mask": at == 2, "test_mask": at == 3}


def of_nodes(y_of):
    graph = noisy_ring(200, torch.Generator().manual_seed(0))
    source, target = graph.edge_index
    summed = torch.zeros_like(graph.x).index_add_(0, target, graph.x[source])
    graph.y = y_of(graph.x + summed / 4)
    return Data(**graph.to_dict(), **split(200))


def of_graphs(y_of):
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(80):
        graph = noisy_ring(6 + number % 5, generator)
        graph.y = y_of(graph.x.sum(dim=0) / 4)
        made.append(graph)
    return tasks.joined_graphs(made[:40], made[40:60], made[60:])


def of_links():
    graph = noisy_ring(120, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    made = RandomLinkSplit(0.2, 0.2, is_undirected=True, add_negative_train_samples=True)(graph)
    return tasks.joined_links(*made)


def of_inductive():
    generator = torch.Generator().manual_seed(0)
    made = []
    for nodes in (80, 60, 60):
        graph = noisy_ring(nodes, generator)
        graph.y = (graph.x[:, 0] > 0).long()
        made.append(graph)
    return tasks.inductive(*made)


CASES = {
    "multi-label": (
        tasks.multi_label(),
        lambda: of_nodes(lambda z: (z[:, :3] > 0).float()),
        Sage,
        3,
    ),
    "multi-label AUC": (
        tasks.multi_label("ROC-AUC"),
        lambda: of_nodes(lambda z: (z[:, :3] > 0).long()),
        Sage,
        3,
    ),
    "regression": (tasks.regression(), lambda: of_nodes(lambda z: z[:, 0]), Sage, 1),
    "several values": (tasks.regression("RMSE"), lambda: of_nodes(lambda z: z[:, :2]), Sage, 2),
    "graph classes": (
        tasks.graph_classification(),
        lambda: of_graphs(lambda z: (z[0] > 0).long()[None]),
        Gin,
        2,
    ),
    "graph values": (tasks.graph_regression(), lambda: of_graphs(lambda z: z[:1]), Gin, 1),
    "links": (tasks.link_prediction(), of_links, Pairs, 8),
    "links MRR": (tasks.link_prediction("MRR"), of_links, Pairs, 8),
    "links Hits": (tasks.link_prediction("Hits@5"), of_links, Pairs, 8),
    "inductive": (tasks.node_classification(), of_inductive, Sage, 2),
    "own metric": (
        tasks.node_classification(
            tasks.Metric(
                "recall of class 1",
                lambda scores, y: float(100 * (scores.argmax(1)[y == 1] == 1).double().mean()),
                "%",
            )
        ),
        lambda: of_nodes(lambda z: (z[:, 0] > 0).long()),
        Sage,
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_task_goes_the_whole_way(case, tmp_path):
    task, make_data, make_model, outputs = CASES[case]
    data = make_data()

    def trained(seed):
        torch.manual_seed(seed)
        model = make_model(data.num_features, outputs)
        sgq.fit(model, data, TrainingConfig(epochs=30), seed=seed, task=task)
        return model

    models = [trained(0), trained(1)]
    study, objective = searched(models, data, task, tmp_path, n_trials=3)
    results = [row.result for row in trial_rows(study, sgq.TrialResult)]
    assert all(one.evidence is not None for one in results)
    if not task.metric.higher_is_better:
        assert max(one.accuracy for one in results) >= objective.full_precision_accuracy * 0.9
    final = sgq.final_report(study, objective, data, seeds=2, retrain=trained)
    values = (*final.full_precision_test, *final.quantized_test)
    assert all(value == pytest.approx(value) for value in values)
    text = str(sgq.report(study))
    assert f"validation {task.metric.name}" in text
    done = sgq.export_study(study, tmp_path / "m.sgq", objective=objective)
    packed = sgq.load_packed(tmp_path / "m.sgq", model=make_model(data.num_features, outputs))
    value = task.metric(
        task.check_outputs(packed, packed(data), task.targets(data))[data.val_mask],
        task.targets(data)[data.val_mask],
    )
    assert value == pytest.approx(done.accuracy)


def test_another_task_is_another_study(tmp_path):
    data = of_nodes(lambda z: z[:, 0])
    torch.manual_seed(0)
    model = Sage(data.num_features, 1)
    by_mae, by_rmse = (
        sgq.QuantizationObjective(
            model, data, task=tasks.regression(name), finetuning=TrainingConfig(epochs=1)
        )
        for name in ("MAE", "RMSE")
    )
    study = sgq.create_study(by_mae, storage=tmp_path / "s.db", study_name="s")
    by_mae.sign(study)
    with pytest.raises(sgq.SgquantError, match="protocol .*task: was .*MAE.*RMSE"):
        by_rmse.sign(study)
