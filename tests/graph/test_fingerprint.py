import copy

import pytest
import torch

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.graph.fingerprint import (
    graph_fingerprint,
    model_fingerprint,
    weights_sketch,
)
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.sparse_features import as_sparse_features
from tests.study.test_record import a_record, a_study


@pytest.mark.parametrize("column", ["x", "edge_index", "y", "train_mask", "val_mask"])
def test_every_column_that_is_read_counts(column, graph):
    other = graph.clone()
    first = (0,) * other[column].dim()
    other[column][first] = not other[column][first] if "mask" in column else 2
    assert graph_fingerprint(other) != graph_fingerprint(graph)


def test_sparse_storage_does_not_count(graph):
    graph.x = graph.x * (graph.x > 1.0)
    before = graph_fingerprint(graph)
    graph.x = as_sparse_features(graph.x)
    assert graph_fingerprint(graph) == before


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
