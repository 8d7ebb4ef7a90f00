import copy

import pytest
import torch

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.fingerprint import (
    check_fingerprint,
    graph_fingerprint,
    model_fingerprint,
    weights_sketch,
)
from sgquant_optuna.models import GCN
from sgquant_optuna.sparse_features import as_sparse_features


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
    base = {"graph": {}, "model": {}, "space": {}, "protocol": {}}
    check_fingerprint("s", {**base, "weights": sketch}, {**base, "weights": weights_sketch(noisy)})
    torch.manual_seed(1)
    other = weights_sketch(GCN(12, 3))
    with pytest.raises(StudyMismatchError, match="another model weights"):
        check_fingerprint("s", {**base, "weights": sketch}, {**base, "weights": other})


def test_the_message_names_what_differs_and_how():
    base = {"graph": {}, "model": {}, "weights": [0.0], "protocol": {"seed": 0}}
    old = {**base, "space": {"bit_widths": [1, 2], "granularity": "lwq"}}
    new = {
        **base,
        "space": {"bit_widths": [1, 4], "granularity": "lwq"},
        "protocol": {"seed": 3},
    }
    with pytest.raises(StudyMismatchError) as error:
        check_fingerprint("mine", old, new)
    assert str(error.value) == (
        "study 'mine' was made with another search space (bit_widths: was [1, 2], is [1, 4]); "
        "another protocol (seed: was 0, is 3). Repeat its settings to resume it, or choose "
        "another study name"
    )


def test_another_architecture_is_another_model():
    assert model_fingerprint(GCN(12, 3, 8)) != model_fingerprint(GCN(12, 3, 16))
    assert model_fingerprint(GCN(12, 3, 8)) == model_fingerprint(GCN(12, 3, 8))
