import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from sgquant_optuna.graph.sparse_features import SparseFeatures, as_sparse_features
from sgquant_optuna.graph.sparse_products import AttentionMatmul, CsrPattern


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 5, generator=generator)
    return x * (torch.rand(6, 5, generator=generator) < 0.3)


def test_it_passes_for_a_tensor(x):
    sparse = SparseFeatures.from_dense(x)
    assert isinstance(sparse, torch.Tensor)
    assert sparse.shape == (6, 5)
    assert sparse.size(0) == len(sparse) == 6
    assert (sparse.dim(), sparse.dtype, sparse.device) == (2, x.dtype, x.device)
    assert not sparse.requires_grad
    assert sparse.dense().equal(x)
    assert copy.deepcopy(sparse) is sparse


def test_a_linear_layer_and_its_gradient_are_those_of_dense_features(x):
    layer = nn.Linear(5, 3)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    out = layer(SparseFeatures.from_dense(x))
    out.square().sum().backward()
    torch.testing.assert_close(out, layer(x))
    torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.parametrize("make", [GCNConv, GATConv, SAGEConv])
def test_convolutions_cannot_tell_the_difference(x, make):
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    conv = make(5, 3)
    torch.testing.assert_close(conv(SparseFeatures.from_dense(x), edge_index), conv(x, edge_index))


def test_any_other_operation_sees_the_dense_matrix(x):
    sparse = SparseFeatures.from_dense(x)
    assert (sparse + 1).equal(x + 1)
    assert torch.cat([sparse, x]).equal(torch.cat([x, x]))
    assert sparse[[2, 0]].equal(x[[2, 0]])
    assert (sparse @ torch.ones(5, 2)).equal(x @ torch.ones(5, 2))


def test_dropout_drops_and_scales_non_zeros_only(x):
    sparse = SparseFeatures.from_dense(x)
    assert F.dropout(sparse, 0.5, training=False) is sparse
    dropped = F.dropout(sparse, 0.5)
    assert isinstance(dropped, SparseFeatures)
    ratio = dropped.non_zeros / sparse.non_zeros
    assert set(ratio.round().tolist()) <= {0.0, 2.0}


def test_dense_features_are_left_as_they_are():
    x = torch.ones(3, 3)
    assert as_sparse_features(x) is x
    assert isinstance(as_sparse_features(torch.eye(9)), SparseFeatures)


def test_attention_product_and_gradients_are_those_of_gather_and_scatter():
    crow, col = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 0, 1, 2])
    pattern = CsrPattern(crow, col, (3, 3))
    target = torch.tensor([0, 0, 2, 2, 2])
    generator = torch.Generator().manual_seed(0)
    alpha = torch.rand(5, 2, generator=generator, requires_grad=True)
    x = torch.rand(3, 2, 4, generator=generator, requires_grad=True)
    weights = torch.rand(3, 2, 4, generator=generator)

    expected = torch.zeros(3, 2, 4).index_add(0, target, alpha[:, :, None] * x[col])
    grads = torch.autograd.grad((expected * weights).sum(), (alpha, x))
    out = AttentionMatmul.apply(pattern, alpha, x)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad((out * weights).sum(), (alpha, x))
    torch.testing.assert_close(found, grads)
