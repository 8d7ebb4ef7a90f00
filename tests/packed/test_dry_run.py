import random
import warnings

import numpy
import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv

from sgquant_optuna.exceptions import ExportWarning
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.packed import dry_run
from sgquant_optuna.search.objective import QuantizationObjective
from tests.conftest import make_graph
from tests.packed.test_any_model import CONSTANT, EXACT, WEIGHTS, Model, convs, two


def change_in_place(m, x, edge_index):
    return two(m, x.mul_(1.0), edge_index)


def draws(m, x, edge_index):
    return two(m, x + torch.rand_like(x), edge_index)


def warned(build, **options):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExportWarning)
        QuantizationObjective(build().eval(), make_graph(), **options)
    return [one for one in caught if one.category is ExportWarning]


@pytest.fixture(params=["whole graph", "part of it first"], autouse=True)
def size(request, monkeypatch):
    if request.param == "part of it first":
        monkeypatch.setattr(dry_run, "_FEW_NODES", 10)
        monkeypatch.setattr(dry_run, "_FEW_EDGES", 20)


@pytest.mark.parametrize(
    "build",
    [
        lambda: GCN(12, 3, 8),
        CONSTANT["batch norm"],
        WEIGHTS["shared weights of attention"],
        WEIGHTS["sequential with functions"],
    ],
    ids=["gcn", "batch norm", "tied", "functions"],
)
def test_a_model_that_can_be_exported_makes_no_warning(build):
    assert warned(build, forward=lambda model, data: model(data.x, data.edge_index)) == []


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (change_in_place, "got mul_; change dense() and pack it"),
        (draws, "a model that gives other scores in each pass cannot be packed"),
    ],
)
def test_a_model_that_cannot_be_exported_is_named_once_in_one_line(run, words):
    # With a bit or two, other draws may end in the same scores.
    (one,) = warned(lambda: Model(run, **convs()), candidates=(8,))
    text = str(one.message)
    assert text.startswith("export of Model: ") and "\n" not in text
    assert words in text and "the search is right" in text
    assert one.filename == __file__  # where the objective was made


def test_bytes_that_no_accounting_counts_are_told():
    (one,) = warned(EXACT["concatenated"])
    # 60 rows of 12 float32 values
    assert "holds them exactly as well: 2880 bytes" in str(one.message)


def test_several_models_and_frozen_widths_are_tried_once():
    models = [EXACT["concatenated"]().eval() for _ in range(2)]
    with pytest.warns(ExportWarning) as caught:
        QuantizationObjective(models, make_graph(), frozen={"first/embedding": 32})
    assert len(caught) == 1


def test_trying_the_export_changes_no_state_of_the_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model(two, **convs()).eval()
    states = (torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    objective = QuantizationObjective(model, make_graph())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for module in (model, *model.modules()):
        assert not module._forward_pre_hooks and not module._forward_hooks
    assert objective.graph.data.x is not None and list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_models_own_code_does_not_stop_the_search():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(12, 3)

        def forward(self, x, edge_index):
            if type(x).__name__ == "InputPlaceholder":
                raise KeyError("what the author did not expect")
            return self.conv(x, edge_index)

    (one,) = warned(Once)
    assert "what the author did not expect" in str(one.message)
