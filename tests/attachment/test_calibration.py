import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, global_mean_pool

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.exceptions import CalibrationError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import GAT, GCN
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.quantization.sites import BitWidths, Site


@pytest.fixture
def bucketed(graph: Data) -> Data:
    return AddDegreeBuckets((2, 4))(graph)


def calibrated(model: nn.Module, data: Data, num_buckets: int = 3) -> FeatureLayout:
    attach(model, num_buckets=num_buckets)
    return calibrate(model, data, candidates=(1, 2, 4, 8), forward=forward)


def test_sizes_count_nodes_of_each_bucket_and_edges_with_self_loops(bucketed):
    layout = calibrated(GAT(12, 3, 16, heads=4), bucketed)
    counts = torch.bincount(bucketed.degree_bucket, minlength=3).tolist()
    for bucket, count in enumerate(counts):
        size = layout.sizes[Site("conv1", "embedding", bucket)]
        assert (size.num_rows, size.num_columns) == (count, 12)
        assert layout.sizes[Site("conv2", "embedding", bucket)].num_columns == 16
    attention = layout.sizes[Site("conv1", "attention")]
    assert attention.num_rows == bucketed.num_edges + bucketed.num_nodes
    assert (attention.num_columns, layout.sizes[Site("conv2", "attention")].num_columns) == (4, 1)
    assert (layout.num_nodes, layout.num_buckets) == (60, 3)


def test_attention_has_no_buckets_even_with_as_many_edges_as_nodes(bucketed):
    ring = torch.stack([torch.arange(60), torch.arange(60).roll(1)])
    bucketed.edge_index = ring
    layout = calibrated(GATConv(12, 4, add_self_loops=False), bucketed)
    assert layout.sizes[Site("model", "attention")].num_rows == 60


def test_an_empty_bucket_has_no_site(graph):
    data = AddDegreeBuckets((2, 1000))(graph)
    layout = calibrated(GCN(12, 3, 8), data)
    assert {site.bucket for site in layout.sizes} == {0, 1}


def test_without_buckets_sites_have_none(graph):
    layout = calibrated(GCN(12, 3, 8), graph, num_buckets=1)
    assert [str(site) for site in layout.sizes] == ["conv1/embedding", "conv2/embedding"]


def test_rows_that_are_not_nodes_share_one_width(bucketed):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lin = GCNConv(12, 8), nn.Linear(8, 3)

        def forward(self, x, edge_index):
            return self.lin(global_mean_pool(self.conv(x, edge_index), None))

    layout = calibrated(Pooled(), bucketed)
    assert Site("lin", "embedding") in layout.sizes
    assert Site("conv", "embedding", 0) in layout.sizes


def test_a_layer_that_is_called_twice_stores_its_input_twice(bucketed):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(12, 12)

        def forward(self, x, edge_index):
            return self.conv(self.conv(x, edge_index), edge_index)

    model = Shared().eval()
    layout = calibrated(model, bucketed)
    assert sum(size.num_rows for size in layout.sizes.values()) == 2 * 60
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))
    assert torch.isfinite(model(bucketed.x, bucketed.edge_index)).all()


def test_nan_features_are_refused_with_their_layer(graph):
    graph.x[3, 3] = torch.nan
    model = attach(GCN(12, 3))
    with pytest.raises(CalibrationError, match="conv1/embedding: features to calibrate on"):
        calibrate(model, graph, candidates=(4,), forward=forward)
