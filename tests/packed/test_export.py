import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv, GraphSAGE

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.exceptions import GraphError, ModelError, PackingError
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.packed import export
from sgquant_optuna.packed.container import write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.quantization.sites import BitWidths
from tests.conftest import make_graph
from tests.packed.test_packed_model import MODELS, quantized


class Refusing(GraphSAGE):
    def __deepcopy__(self, memo):
        raise RuntimeError("holds a lock")


class Unloadable(GraphSAGE):
    def load_state_dict(self, state, strict=True):
        raise KeyError("mine")


def sage(made=GraphSAGE, hidden=8, **options):
    return made(12, hidden, num_layers=2, out_channels=3, **options)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            lambda: GraphSAGE,
            TypeError,
            "model: expected an instance, got the class GraphSAGE;",
        ),
        (lambda: "sage", TypeError, "model: expected an instance of torch.nn.Module, got str"),
        (lambda: None, ModelError, "expected an instance of GraphSAGE, got none; give the model"),
        (
            lambda: sage(hidden=9),
            ModelError,
            r"GraphSAGE: expected the architecture that was packed \(GraphSAGE\), with "
            r"convs.0.lin_l.weight \[8, 12\], got \[9, 12\]; build it with the arguments",
        ),
        (
            lambda: MODELS["gin"](),
            ModelError,
            r"GIN: expected the architecture that was packed \(GraphSAGE\), got one with weights "
            r"convs.0.eps as well; build it",
        ),
        (
            lambda: GCNConv(12, 3),
            ModelError,
            r"GCNConv: expected the architecture that was packed \(GraphSAGE\), got one with",
        ),
        (
            lambda: sage(aggr="max"),
            ModelError,
            "GraphSAGE: expected the architecture .* got one of other layers or settings; build",
        ),
        (
            lambda: sage().double(),
            ModelError,
            "GraphSAGE: expected float32 weights, got float64 in convs.0.lin_l.weight; call model",
        ),
        (lambda: sage(Refusing), ModelError, r"Refusing cannot be copied and described \(Run"),
        (
            lambda: sage(Unloadable),
            ModelError,
            r"Unloadable cannot load the weights .*\(KeyErr",
        ),
    ],
)
def test_a_wrong_instance_is_refused_by_its_class(given, error, message, tmp_path):
    model, data, layout, *_ = quantized("sage", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    with pytest.raises(error, match=message) as caught:
        load_packed(tmp_path / "m", given())
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


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


class OneColumn(nn.Module):
    """A model with one score, which is another one where the features are packed."""

    def __init__(self, factor):
        super().__init__()
        self.conv, self.factor = GCNConv(12, 1), factor

    def forward(self, x, edge_index):
        is_packed = type(x).__name__ == "InputPlaceholder"
        return self.conv(x, edge_index) * (self.factor if is_packed else 1.0)


def one_column(factor):
    data = make_graph()
    model = attach(OneColumn(factor))
    layout = calibrate(model, data, candidates=(4,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))
    return model, data, layout


def test_scores_are_compared_by_a_tolerance_though_no_class_changes(tmp_path):
    (tmp_path / "m").write_bytes(b"an older file")
    model, data, layout = one_column(1 + 1e-3)
    with pytest.raises(PackingError, match="to a relative 0.0001, got a difference of 0.001"):
        export_packed(model, data, tmp_path / "m", layout=layout)
    assert (tmp_path / "m").read_bytes() == b"an older file"
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]
    model, data, layout = one_column(1 + 1e-5)
    assert export_packed(model, data, tmp_path / "m", layout=layout).score_difference < 2e-5


def test_the_model_that_is_compared_is_the_one_in_the_file(tmp_path, monkeypatch):
    def lose_weights(path, kind, fields, tensors):
        lost = {name: t * 0 if name.startswith("weights") else t for name, t in tensors.items()}
        write_container(path, kind, fields, lost)

    monkeypatch.setattr(export, "write_container", lose_weights)
    model, data, layout, *_ = quantized("sage", make_graph())
    with pytest.raises(PackingError, match="expected the scores of the fake-quantized one"):
        export_packed(model, data, tmp_path / "m", layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_only_regular_files_are_replaced(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", "/dev/null", tmp_path / "none" / "m"):
        with pytest.raises(ValueError, match="expected a file"):
            export_packed(model, data, path, layout=layout)
    (tmp_path / "link").symlink_to("m")
    done = export_packed(model, data, tmp_path / "link", layout=layout)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "m").stat().st_size == done.file_nbytes


def test_a_graph_of_another_layout_is_refused(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    with pytest.raises(GraphError, match="60 nodes"):
        export_packed(model, make_graph(num_nodes=30), tmp_path / "m", layout=layout)
    with pytest.raises(GraphError, match="degree_bucket"):
        export_packed(model, make_graph(), tmp_path / "m", layout=layout)
