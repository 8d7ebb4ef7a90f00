import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm
from torch_geometric.nn import GraphSAGE, Sequential

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.graph.fingerprint import (
    graph_fingerprint,
    model_fingerprint,
    weights_sketch,
)
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.sparse_features import as_sparse_features
from tests.study.test_record import a_record, a_study

READ = ("train_mask", "val_mask", "y")


@pytest.mark.parametrize("column", ["x", "edge_index", "y", "train_mask", "val_mask"])
def test_every_column_that_is_read_counts(column, graph):
    other = graph.clone()
    first = (0,) * other[column].dim()
    other[column][first] = not other[column][first] if "mask" in column else 2
    assert graph_fingerprint(other, READ) != graph_fingerprint(graph, READ)


def test_sparse_storage_does_not_count(graph):
    graph.x = graph.x * (graph.x > 1.0)
    before = graph_fingerprint(graph, READ)
    graph.x = as_sparse_features(graph.x)
    assert graph_fingerprint(graph, READ) == before


def test_rounding_is_forgiven_but_another_seed_is_not():
    torch.manual_seed(0)
    model = GCN(12, 3)
    sketch = weights_sketch(model)
    noisy = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))
    torch.manual_seed(1)
    other = weights_sketch(GCN(12, 3))
    record = a_record(weights=sketch)
    record.check(a_study(), {**record.fingerprint, "weights": weights_sketch(noisy)})
    with pytest.raises(StudyMismatchError, match="another model weights"):
        record.check(a_study(), {**record.fingerprint, "weights": other})


def test_another_architecture_is_another_model():
    assert model_fingerprint(GCN(12, 3, 8)) != model_fingerprint(GCN(12, 3, 16))
    assert model_fingerprint(GCN(12, 3, 8)) == model_fingerprint(GCN(12, 3, 8))
    # Its readable form is GraphSAGE(12, 3, num_layers=2), whatever its layers do.
    assert model_fingerprint(GraphSAGE(12, 8, 2, 3, aggr="max")) != model_fingerprint(
        GraphSAGE(12, 8, 2, 3)
    )


def test_the_fingerprint_of_a_model_of_the_paper_stays_the_same():
    # Studies and packed files of earlier versions hold it.
    assert model_fingerprint(GCN(12, 3, 8)) == {"class": "GCN", "hash": "fdf918815f450837"}


class Acting(nn.Module):
    """A layer whose readable form shows the address of a function."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def extra_repr(self):
        return f"act={self.act}"


def relu():
    return lambda x: x.relu()


@pytest.mark.parametrize(
    "build",
    [
        lambda act: Acting(act),
        lambda act: Acting(partial(torch.add, act)),
        lambda act: Acting([act]),
        lambda act: Sequential("x", [(nn.Linear(3, 3), "x -> x"), (act, "x -> x")]),
    ],
    ids=["function", "partial", "list", "Sequential of PyG"],
)
def test_the_address_of_a_function_does_not_count_but_its_code_does(build):
    one, same = build(relu()), build(relu())
    assert repr(one) != repr(same)
    assert model_fingerprint(one) == model_fingerprint(same)
    for other in (lambda x: x.elu(), lambda x: x * 2, lambda x: x in {"a", "b"}):
        assert model_fingerprint(one) != model_fingerprint(build(other))
    assert model_fingerprint(build(lambda x: x * 2)) != model_fingerprint(build(lambda x: x * 3))


def test_a_fingerprint_is_the_same_in_every_process():
    code = (
        "from torch_geometric.nn import Sequential, GCNConv\n"
        "from sgquant_optuna.graph.fingerprint import model_fingerprint\n"
        "act = lambda x: x.relu() if 'a' in {'a', 'b', 'c'} else (lambda y: y + 1)(x)\n"
        "layers = [(GCNConv(3, 3), 'x, e -> x'), (act, 'x -> x')]\n"
        "print(model_fingerprint(Sequential('x, e', layers)))\n"
    )
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy:UserWarning")
def test_a_model_that_deepcopy_refuses_is_copied_with_its_values():
    x = torch.rand(4, 3)
    model = nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.LazyBatchNorm1d())
    model[0](x)  # keeps a weight that was computed of two parameters
    with pytest.raises((RuntimeError, ValueError)):
        copy.deepcopy(model)
    copied = copy_model(model)
    assert torch.equal(copied.eval()[0](x), model.eval()[0](x))
    with torch.no_grad():
        copied[0].weight_g.zero_()
    assert bool(model[0](x).any())
