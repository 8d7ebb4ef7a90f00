"""Graphs in mini-batches: three of 1, 2 and 3 nodes, whose sums are 1, 5 and 15."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GINConv, global_add_pool

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.exceptions import GraphError, ModelError, TaskError
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.mini_batches import Selection, mini_batches
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.graph.union_slices import UnionSlices
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

EVERY_WEIGHT = TrainingConfig(epochs=1, learning_rate=1e-12, weight_decay=0.0)
VALUES_OF_2 = tasks.graph_regression("MAE", batch_size=2)


def three_graphs():
    return Data(
        x=torch.tensor([[1.0], [2], [3], [4], [5], [6]]),
        edge_index=torch.tensor([[1, 2, 3, 4, 4, 5], [2, 1, 4, 3, 5, 4]]),
        edge_attr=torch.tensor([12, 21, 34, 43, 45, 54]),
        batch=torch.tensor([0, 1, 1, 2, 2, 2]),
        y=torch.tensor([1.0, 5.0, 15.0]),
    )


def with_validation():
    """Return the three graphs twice: to train on, and to validate on."""
    train = [one_of_three(number) for number in range(3)]
    return tasks.joined_graphs(train, train)


def one_of_three(number):
    part = UnionSlices(three_graphs(), ("y",)).take(torch.tensor([number]))
    del part.batch
    return part


class Sum(nn.Module):
    """The sum of all features of a graph, times a weight that begins at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, edge_index, batch):
        return global_add_pool(x, batch) * self.weight


def test_graphs_are_taken_with_their_edges_counted_anew():
    part = UnionSlices(three_graphs(), ("y",)).take(torch.tensor([2, 0]))
    assert part.x.flatten().tolist() == [4, 5, 6, 1]
    assert part.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert part.edge_attr.tolist() == [34, 43, 45, 54]
    assert part.batch.tolist() == [0, 0, 0, 1]
    assert part.y.tolist() == [15, 1]


def test_edges_in_any_order_go_with_their_graph():
    data = three_graphs()
    order = torch.tensor([5, 0, 3, 1, 2, 4])
    data.edge_index, data.edge_attr = data.edge_index[:, order], data.edge_attr[order]
    part = UnionSlices(data, ("y",)).take(torch.tensor([2]))
    assert part.edge_attr.tolist() == [54, 43, 34, 45]
    assert part.edge_index.tolist() == [[2, 1, 0, 1], [1, 0, 1, 2]]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_blocks_of_a_sparse_adjacency_are_taken(layout):
    data = three_graphs()
    dense = torch.zeros(6, 6)
    dense[data.edge_index[1], data.edge_index[0]] = 1.0
    data.adj_t = dense.to_sparse(layout=layout)
    del data.edge_index, data.edge_attr
    block = UnionSlices(data, ("y",)).take(torch.tensor([2, 0])).adj_t
    assert block.layout == layout
    assert block.to_dense().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_sparse_features_stay_sparse():
    data = three_graphs()
    data.x = SparseFeatures.from_dense(torch.eye(6))
    part = UnionSlices(data, ("y",)).take(torch.tensor([2, 0]))
    assert isinstance(part.x, SparseFeatures)
    assert part.x.dense().argmax(dim=1).tolist() == [3, 4, 5, 0]


def test_a_column_of_another_length_is_refused_by_name():
    data = three_graphs()
    data.face = torch.zeros(4, 7)
    with pytest.raises(GraphError, match=r"column face: expected a row for each of 6 nodes, .*7"):
        UnionSlices(data, ("y",))


def test_each_graph_is_in_one_batch_of_its_split():
    parts = mini_batches(FixedGraph(with_validation()), 2, "y")
    assert sorted(len(part.items) for part in parts.training) == [1, 2]
    assert sorted(torch.cat([part.items for part in parts.training]).tolist()) == [0, 1, 2]
    assert [part.items.tolist() for part in parts.others] == [[3, 4, 5]]


def test_outputs_come_in_the_order_of_the_graphs():
    parts = mini_batches(FixedGraph(with_validation()), 2, "y")
    mask = torch.tensor([True, False, True, False, True, True])
    chosen = Selection((*parts.others, *parts.training), mask)
    assert chosen.gather(lambda part: part.data.y).tolist() == [1, 15, 5, 15]


def test_the_loss_of_an_epoch_is_the_mean_over_graphs():
    found = sgq.fit(Sum(), with_validation(), EVERY_WEIGHT, task=VALUES_OF_2)
    assert found.losses == (pytest.approx((1 + 25 + 225) / 3),)
    assert found.accuracy == pytest.approx((1 + 5 + 15) / 3)


def test_each_batch_is_a_step():
    """A step of Adam with a gradient of one sign moves the weight by the learning rate."""
    config = TrainingConfig(epochs=1, learning_rate=1e-3, weight_decay=0.0)
    moved = {}
    for size in (1, 2, 3, None):
        model = Sum()
        sgq.fit(model, with_validation(), config, task=tasks.graph_regression(batch_size=size))
        moved[size] = round(float(model.weight.detach() / 1e-3))
    assert moved[2] == 2 and moved[3] == 1 and moved[None] == 1
    assert moved[1] in (2, 3)  # gradients of 1 and 15 differ, so the mean is not of one size


def made_graphs(count, *, seed=0, outputs=None):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        nodes = 2 + number % 5
        ends = torch.randint(nodes, (2, 3 * (number % 4)), generator=generator)  # some have none
        x = torch.randn(nodes, 4, generator=generator)
        y = x[:, :outputs].sum(dim=0)[None] if outputs else (x.sum() > 0).long()[None]
        made.append(Data(x=x, edge_index=ends, y=y))
    return made


class Gin(nn.Module):
    def __init__(self, outputs, dropout=0.0, conv="gin"):
        super().__init__()
        inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.conv = GINConv(inner) if conv == "gin" else GCNConv(4, 8)
        self.head, self.dropout = nn.Linear(8, outputs), nn.Dropout(dropout)

    def forward(self, x, edge_index, batch):
        hidden = self.conv(x, edge_index).relu()
        return self.head(self.dropout(global_add_pool(hidden, batch)))


KINDS = {
    "classes": (tasks.graph_classification, None, 2),
    "values": (tasks.graph_regression, 3, 3),
    "labels": (tasks.graph_multi_label, 3, 3),
}


def of_kind(kind):
    make, columns, outputs = KINDS[kind]
    graphs = made_graphs(23, outputs=columns)
    if kind == "labels":
        for graph in graphs:
            graph.y = (graph.y > 0).float()
    return make, tasks.joined_graphs(graphs[:12], graphs[12:18], graphs[18:]), outputs


def seeded(outputs, **options):
    torch.manual_seed(0)
    return Gin(outputs, **options)


@pytest.mark.parametrize("conv", ["gin", "gcn"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_in_batches_equals_that_of_all_at_once(kind, conv):
    make, data, outputs = of_kind(kind)
    model = seeded(outputs, conv=conv)
    for mask in (data.val_mask, data.test_mask, data.train_mask | data.test_mask):
        values = [
            sgq.accuracy(model, data, mask, task=make(batch_size=size)) for size in (None, 1, 5)
        ]
        assert values[1:] == pytest.approx([values[0]] * 2, abs=1e-5)


@pytest.mark.parametrize("conv", ["gin", "gcn"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_that_of_a_plain_loop_over_the_same_batches(kind, conv):
    make, data, outputs = of_kind(kind)
    config = TrainingConfig(epochs=3, learning_rate=0.01, patience=9)
    model, plain = seeded(outputs, conv=conv), seeded(outputs, conv=conv)
    task = make(batch_size=5)
    found = sgq.fit(model, data, config, task=task, seed=7)

    parts = mini_batches(FixedGraph(data), 5, "y").training
    order = torch.Generator().manual_seed(7)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, weight_decay=config.weight_decay)
    losses = []
    for _ in range(3):
        total = 0.0
        for at in torch.randperm(len(parts), generator=order).tolist():
            part = parts[at].data
            optimizer.zero_grad()
            loss = task.answers.loss(plain(part.x, part.edge_index, part.batch), part.y)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part.y)
        losses.append(total / 12)
    assert found.losses == pytest.approx(losses, abs=1e-5)


def test_the_seed_alone_decides():
    make, data, outputs = of_kind("classes")

    def losses(seed, noise):
        torch.manual_seed(noise)
        model = Gin(outputs, dropout=0.5)
        model.load_state_dict(seeded(outputs).state_dict())
        config = TrainingConfig(epochs=3)
        return sgq.fit(model, data, config, task=make(batch_size=3), seed=seed).losses

    assert losses(1, 0) == losses(1, 5) != losses(2, 0)


def test_a_model_sees_a_batch_at_most():
    make, data, outputs = of_kind("classes")
    seen = []

    def call(model, part):
        seen.append((model.training, int(part.batch.max()) + 1))
        return model(part.x, part.edge_index, part.batch)

    sgq.fit(seeded(outputs), data, EVERY_WEIGHT, task=make(batch_size=1), forward=call)
    assert {count for training, count in seen if training} == {1}
    assert max(count for training, count in seen if not training) == 3  # of at most 4


@pytest.mark.parametrize("buckets", [1, 2])
def test_quantized_models_run_in_batches_as_at_once(buckets):
    make, data, outputs = of_kind("classes")
    granularity = "lwq+taq" if buckets > 1 else "lwq"
    scores = []
    for size in (None, 1, 5):
        objective = sgq.QuantizationObjective(
            seeded(outputs),
            data,
            task=make(batch_size=size),
            granularity=granularity,
            degree_edges=(2,) if buckets > 1 else 1,
            candidates=(2, 4),
            finetuning=TrainingConfig(epochs=0),
        )
        widths = {site: 2 + 2 * (at % 2) for at, site in enumerate(objective.layout.sizes)}
        model = objective.models[0].quantized(sgq.BitWidths(widths))
        scores.append(objective.models[0].scores(model))
        bound = model.graph_context.of_type("").x
        assert bound is objective.graph.data.x  # after the batches, the whole is bound again
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], atol=1e-5, rtol=0)


def test_inputs_are_quantized_once_for_each_batch(monkeypatch):
    make, data, outputs = of_kind("classes")
    objective = sgq.QuantizationObjective(
        seeded(outputs),
        data,
        task=make(batch_size=5),
        granularity="lwq",
        candidates=(2, 4),
        exact_inputs=False,
    )
    calibrated = objective.models[0]
    rows = []
    forward = FeatureQuantizer.forward

    def counted(self, x, bucket=None):
        if self.name == "conv/embedding":
            rows.append(len(x))
        return forward(self, x, bucket)

    monkeypatch.setattr(FeatureQuantizer, "forward", counted)
    bits = sgq.BitWidths(dict.fromkeys(objective.layout.sizes, 4))
    model, _ = calibrated.finetune(bits, TrainingConfig(epochs=4), seed=0)
    calibrated.scores(model)
    assert sum(rows) == data.num_nodes


def test_a_training_finds_the_batches_of_the_last_one():
    make, data, outputs = of_kind("classes")
    fixed = FixedGraph(data)
    seen = []

    def call(model, part):
        seen.append(id(part.x))
        return model(part.x, part.edge_index, part.batch)

    for _ in range(2):
        model = seeded(outputs)
        sgq.fit(model, fixed, EVERY_WEIGHT, task=make(batch_size=5), forward=call)
    assert len(set(seen)) == 3 + 1


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "all"])
def test_a_batch_size_is_a_number_of_graphs(size):
    with pytest.raises(TaskError, match="batch_size of graph classification: expected graphs"):
        tasks.graph_classification(batch_size=size)


def test_the_batch_size_is_that_of_the_task_then_of_the_loader_then_the_default():
    graphs = made_graphs(6)
    data = tasks.joined_graphs(graphs[:3], graphs[3:])
    assert tasks.graph_classification().batch_size_of(data) == 64
    data.graphs_per_batch = 2
    assert tasks.graph_classification().batch_size_of(data) == 2
    assert tasks.graph_classification(batch_size=3).batch_size_of(data) == 3
    assert tasks.graph_classification(batch_size=None).batch_size_of(data) is None
    assert tasks.node_classification().batch_size_of(data) is None


def test_a_loss_that_is_not_finite_ends_the_epoch():
    data = with_validation()
    config = TrainingConfig(epochs=5, learning_rate=1e30, weight_decay=0.0)
    found = sgq.fit(Sum(), data, config, task=VALUES_OF_2)
    assert found.epochs < 5
    assert not torch.tensor(found.losses[-1]).isfinite()


def test_a_batch_that_is_answered_in_another_shape_is_refused():
    data = with_validation()

    def first_row(model, part):
        return model(part.x, part.edge_index, part.batch)[:1]

    with pytest.raises(ModelError, match=r"expected values, float \[3\], got float32 \[1, 1\]"):
        sgq.fit(Sum(), data, EVERY_WEIGHT, task=VALUES_OF_2, forward=first_row)


def test_rows_with_ranges_of_their_own_need_all_graphs_at_once():
    make, data, outputs = of_kind("classes")
    quantizer = sgq.QuantizerConfig(axis="row")
    with pytest.raises(TaskError, match="axis row.*batch_size=None"):
        sgq.QuantizationObjective(seeded(outputs), data, task=make(), quantizer=quantizer)
    sgq.QuantizationObjective(
        seeded(outputs), data, task=make(batch_size=None), quantizer=quantizer
    )


def test_another_batch_size_is_another_study():
    make, data, outputs = of_kind("classes")
    prints = [
        sgq.QuantizationObjective(seeded(outputs), data, task=make(batch_size=size)).fingerprint[
            "protocol"
        ]["task"]
        for size in (None, 5, 6)
    ]
    assert prints[0] == ["graph", "classes", "accuracy"]
    assert prints[1:] == [[*prints[0], f"batches of {size}"] for size in (5, 6)]
