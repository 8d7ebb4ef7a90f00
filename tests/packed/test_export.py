import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv, GraphSAGE

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.exceptions import GraphError, ModelError
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.quantization.sites import BitWidths
from tests.conftest import make_graph
from tests.packed.test_packed_model import MODELS, quantized


def test_another_architecture_is_refused(tmp_path):
    model, data, layout, *_ = quantized("sage", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    with pytest.raises(ModelError, match="expected an instance of GraphSAGE"):
        load_packed(tmp_path / "m")
    for other in (MODELS["gin"](), GraphSAGE(12, 9, num_layers=2, out_channels=3)):
        with pytest.raises(ModelError, match="expected the architecture"):
            load_packed(tmp_path / "m", other)


@pytest.mark.parametrize("method", ["__deepcopy__", "__repr__"])
def test_what_fails_in_the_users_class_names_the_class(method, tmp_path, monkeypatch):
    def fails(*_):
        raise TypeError("not today")

    model, data, layout, *_ = quantized("sage", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    given_model = MODELS["sage"]()
    monkeypatch.setattr(type(given_model), method, fails, raising=False)
    with pytest.raises(ModelError, match=r"GraphSAGE cannot be .* \(TypeError: not today\)$"):
        load_packed(tmp_path / "m", given_model)


def test_the_given_model_stays_as_it_is(tmp_path):
    model, data, layout, scores, _ = quantized("sage", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    given_model = MODELS["sage"]()
    before = {name: value.clone() for name, value in given_model.state_dict().items()}
    load_packed(tmp_path / "m", given_model)(data)
    assert all(
        torch.equal(value, before[name]) for name, value in given_model.state_dict().items()
    )
    assert forward(given_model.eval(), make_graph()).shape == scores.shape


def test_a_model_that_needs_its_input_elsewhere_is_refused(tmp_path):
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(12, 12)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index) + x

    data = make_graph()
    model = attach(Skip())
    layout = calibrate(model, data, candidates=(4,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))
    with pytest.raises(ModelError, match="outside its quantized layers"):
        export_packed(model, data, tmp_path / "m", layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_another_layout_is_refused(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    with pytest.raises(GraphError, match="60 nodes"):
        export_packed(model, make_graph(num_nodes=30), tmp_path / "m", layout=layout)
    with pytest.raises(GraphError, match="degree_bucket"):
        export_packed(model, make_graph(), tmp_path / "m", layout=layout)
