"""Packed models of several node types: what they store, and files that contradict themselves."""

import copy

import pytest
import torch

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.exceptions import GraphError, ModelError, PackingError
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.export import export_packed
from sgquant_optuna.packed.model_file import KIND
from sgquant_optuna.packed.packed_model import PackedModel
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from tests.typed_graphs import by_relation, five_nodes, library, transformed

TASK = tasks.node_classification(node_type="paper")
OF_PAPERS = TASK.answering(forward)


def quantized(model, data, *, buckets=1, width=8, axis="bucket"):
    sgq.attach(model, config=QuantizerConfig(axis=axis), num_buckets=buckets)
    layout = sgq.calibrate(model, data, candidates=(width,), forward=OF_PAPERS)
    sgq.set_bit_widths(model, sgq.BitWidths(dict.fromkeys(layout.sizes, width)))
    return model, layout


def test_the_bytes_are_those_worked_by_hand(tmp_path):
    data = five_nodes()
    model, layout = quantized(transformed(data), data)
    done = export_packed(model, data, tmp_path / "m", layout=layout, forward=OF_PAPERS)
    assert done.stored_nbytes == (10 + 8) + (12 + 8) + (12 + 8) + (18 + 8)  # codes and ranges
    packed = sgq.load_packed(tmp_path / "m", model=transformed(data))
    scores = packed(data)
    assert packed.stored_nbytes == {
        "conv1.author/embedding": 18,
        "conv1.paper/embedding": 20,
        "conv2.author/embedding": 20,
        "conv2.paper/embedding": 26,
        "bucket ids": 0,
    }
    assert torch.equal(scores, OF_PAPERS(model, data))
    assert torch.equal(packed(data), scores)


@pytest.mark.parametrize("axis", ["bucket", "column", "row", "tensor"])
@pytest.mark.parametrize("make", [transformed, by_relation])
def test_buckets_and_ranges_are_those_of_each_type(make, axis, tmp_path):
    data = sgq.AddDegreeBuckets((1, 4))(library())
    model, layout = quantized(make(data), data, buckets=3, width=4, axis=axis)
    done = export_packed(model, data, tmp_path / "m", layout=layout, forward=OF_PAPERS)
    assert done.score_difference < 1e-6
    packed = sgq.load_packed(tmp_path / "m", model=make(data))
    assert packed(data).shape == (80, 2)
    assert packed.stored_nbytes["bucket ids"] == 2 * 136 // 8  # two bits for each node


@pytest.mark.parametrize("kind", ["sparse", "binary"])
def test_sparse_features_of_a_type_are_stored_sparse(kind, tmp_path):
    data = library()
    data["author"].x = (
        torch.rand(50, 40, generator=torch.Generator().manual_seed(1)) < 0.05
    ) * 1.0
    if kind == "sparse":
        data["author"].x = data["author"].x * torch.arange(1.0, 41.0)
    model, layout = quantized(transformed(data), data)
    done = export_packed(model, data, tmp_path / "m", layout=layout, forward=OF_PAPERS)
    assert done.score_difference < 1e-6
    assert done.stored_nbytes < 50 * 40


def test_the_call_of_a_model_has_to_say_whose_scores_it_gives(tmp_path):
    data = five_nodes()
    model, layout = quantized(transformed(data), data)
    with pytest.raises(ModelError, match=r"forward=task.answering\(forward\)"):
        export_packed(model, data, tmp_path / "m", layout=layout)


def test_a_graph_of_other_types_is_refused(tmp_path):
    data = five_nodes()
    model, layout = quantized(transformed(data), data)
    export_packed(model, data, tmp_path / "m", layout=layout, forward=OF_PAPERS)
    packed = sgq.load_packed(tmp_path / "m", model=transformed(data))
    larger = copy.copy(data)
    larger["author"].x = torch.rand(3, 5)
    with pytest.raises(GraphError, match="3 of paper, 2 of author.*, got 3 of paper, 3 of author"):
        packed(larger)


@pytest.mark.parametrize(
    "change",
    [
        {"counts": None},
        {"counts": [["paper", 3, 4], ["author", 3, 5]]},
        {"counts": [["paper", 3, 4], ["author", 2, 6]]},
        {"counts": [["paper", 2, 4], ["author", 3, 5]]},
        {"counts": [["paper", -3, 4], ["author", 8, 5]]},
        {"counts": [[["paper"], 3, 4]]},
        {"sites": {"conv1.paper/embedding": "venue"}},
        {"sites": {}},
        {"sites": None},
        {"answers": "venue"},
        {"answers": None},
        {"answers": ["paper"]},
        {"unused": None},
        {"unused": {"conv1": 3}},
        {"unused": {"no such layer": ["x"]}},
        {"unused": {"conv1.author__writes__paper": ["no such argument"]}},
    ],
    ids=str,
)
def test_a_file_that_contradicts_itself_is_refused(change, tmp_path):
    data = five_nodes()
    model, layout = quantized(transformed(data), data)
    export_packed(model, data, tmp_path / "m", layout=layout, forward=OF_PAPERS)
    fields, tensors = read_container(tmp_path / "m", KIND)
    PackedModel(fields, tensors, transformed(data))
    fields["node_types"] = {**fields["node_types"], **change}
    with pytest.raises(PackingError):
        PackedModel(fields, tensors, transformed(data))
