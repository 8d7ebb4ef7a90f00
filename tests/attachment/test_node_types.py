"""Sites of heterogeneous models: by layer and node type, each feature once."""

import copy
import pickle

import pytest
import torch

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.attachment.type_names import TypeNames
from sgquant_optuna.graph.forward_pass import forward
from tests.typed_graphs import (
    attending,
    by_relation,
    five_nodes,
    library,
    transformed,
    transformer,
)

OF_PAPERS = tasks.node_classification(node_type="paper").answering(forward)


def calibrated(model, data, **options):
    return sgq.calibrate(sgq.attach(model, **options), data, candidates=(2, 8), forward=OF_PAPERS)


def sizes_of(layout):
    return {str(site): (one.num_rows, one.num_columns) for site, one in layout.sizes.items()}


@pytest.mark.parametrize("make", [transformed, by_relation])
def test_a_feature_is_one_site_of_its_layer_and_node_type(make):
    data = five_nodes()
    layout = calibrated(make(data), data)
    assert sizes_of(layout) == {
        "conv1.author/embedding": (2, 5),
        "conv1.paper/embedding": (3, 4),
        "conv2.author/embedding": (2, 6),
        "conv2.paper/embedding": (3, 6),
    }
    inputs = [site.layer for site, size in layout.sizes.items() if size.content is not None]
    assert inputs == ["conv1.author", "conv1.paper"]
    memory = sgq.honest_memory(layout, sgq.BitWidths(dict.fromkeys(layout.sizes, 8)))
    assert memory.memory_bytes == (10 + 8) + (12 + 8) + (12 + 8) + (18 + 8)  # codes, ranges
    assert memory.full_precision_bytes == 4 * (10 + 12 + 12 + 18)


def test_linear_layers_and_dictionaries_of_features_have_sites_by_node_type():
    data = five_nodes()
    assert list(sizes_of(calibrated(transformer(data), data))) == [
        "inputs.paper/embedding",
        "inputs.author/embedding",
        "conv.paper/embedding",
        "conv.author/embedding",
        "head/embedding",
    ]


@pytest.mark.parametrize("make", [transformed, by_relation, transformer])
def test_with_32_bits_and_after_detaching_the_model_is_as_it_was(make):
    data = library()
    model = make(data)
    plain = OF_PAPERS(model, data)
    calibrated(model, data)
    assert torch.equal(OF_PAPERS(model, data), plain)
    assert torch.equal(OF_PAPERS(copy.deepcopy(model), data), plain)
    calibrated(sgq.detach(model), data)
    assert torch.equal(OF_PAPERS(sgq.detach(model), data), plain)


@pytest.mark.parametrize("make", [transformed, by_relation, attending])
def test_a_quantized_model_can_be_copied_and_pickled(make):
    data = library()
    model = make(data)
    layout = calibrated(model, data)
    sgq.set_bit_widths(model, sgq.BitWidths(dict.fromkeys(layout.sizes, 2)))
    scores = OF_PAPERS(model, data)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        sgq.bind(other, data)
        assert torch.equal(OF_PAPERS(other, data), scores)
        sgq.set_bit_widths(other, sgq.BitWidths(dict.fromkeys(layout.sizes, 8)))
        assert not torch.equal(OF_PAPERS(other, data), scores)
        assert type(sgq.detach(other)).__name__ == type(make(data)).__name__
    assert torch.equal(OF_PAPERS(model, data), scores)


@pytest.mark.parametrize("make", [transformed, by_relation])
def test_all_relations_get_the_same_quantized_features(make):
    data = five_nodes()
    model = make(data)
    plain = copy.deepcopy(model)
    layout = calibrated(model, data)
    widths = {s: 2 if s.layer == "conv1.paper" else 32 for s in layout.sizes}
    sgq.set_bit_widths(model, sgq.BitWidths(widths))
    quantizer = next(
        one for one in model.modules() if getattr(one, "name", "") == "conv1.paper/embedding"
    )
    by_hand = copy.copy(data)
    by_hand["paper"].x = quantizer(data["paper"].x)
    assert not torch.equal(by_hand["paper"].x, data["paper"].x)
    assert torch.equal(OF_PAPERS(model, data), OF_PAPERS(plain, by_hand))


def test_what_no_output_depends_on_is_neither_quantized_nor_counted():
    data = library()
    layout = calibrated(transformed(data), data)
    assert [site.layer for site in layout.sizes] == [
        "conv1.author",
        "conv1.paper",
        "conv2.author",
        "conv2.paper",
    ]
    assert layout.notes == tuple(
        f"{layer}: not quantized and not counted, because no output depends on it"
        for layer in ("conv1.venue", "conv2.venue")
    )


def test_attention_is_by_relation_and_left_out_where_no_output_depends_on_it():
    data = library()
    model = attending(data)
    plain = OF_PAPERS(model, data)
    layout = calibrated(model, data)
    attention = [site.layer for site in layout.sizes if site.component == "attention"]
    assert sorted(attention) == [
        f"{conv}.{relation}"
        for conv, relations in (
            ("conv1", ("author__writes__paper", "paper__cites__paper", "paper__of__author")),
            ("conv2", ("author__writes__paper", "paper__cites__paper")),
        )
        for relation in relations
    ]
    assert len(layout.notes) == 3 + 3  # venues of both layers and lin1, and three relations
    assert torch.equal(OF_PAPERS(model, data), plain)
    assert torch.equal(OF_PAPERS(sgq.detach(model), data), plain)


def test_features_before_the_last_layer_of_their_type_are_left_out_too():
    data = library()
    data["venue", "has", "author"].edge_index = data["author", "writes", "paper"].edge_index % 6
    layout = calibrated(transformed(data), data)
    assert "conv1.venue" in [site.layer for site in layout.sizes]
    assert [note.split(":")[0] for note in layout.notes] == ["conv2.venue"]


def test_degree_buckets_are_those_of_the_node_type():
    data = sgq.AddDegreeBuckets((2,))(five_nodes())
    layout = calibrated(transformed(data), data, num_buckets=2)
    rows = {str(site): size.num_rows for site, size in layout.sizes.items()}
    assert rows["conv1.author/embedding/bucket0"] == 1
    assert rows["conv1.author/embedding/bucket1"] == 1
    assert rows["conv2.paper/embedding/bucket0"] == 2
    assert rows["conv2.paper/embedding/bucket1"] == 1
    assert layout.num_nodes == 5


def test_another_graph_needs_to_be_bound():
    data = sgq.AddDegreeBuckets((2,))(five_nodes())
    model = transformed(data)
    calibrated(model, data, num_buckets=2)
    other = copy.copy(data)
    other["paper"].x, other["author"].x = torch.rand(3, 4), torch.rand(2, 5)
    for relation in other.edge_types:
        other[relation].edge_index = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(sgq.SgquantError, match=r"bind\(model, data\)"):
        forward(model, other)
    sgq.bind(model, other)
    forward(model, other)


def test_the_type_of_a_layer_is_told_by_its_path():
    names = TypeNames((["a paper", "author"], [("author", "writes", "a paper")]))
    assert names.place("conv1.author__writes__a_paper") == ("conv1", "author", "a paper")
    assert names.place("convs.0.convs.<author___writes___a paper>") == (
        "convs.0",
        "author",
        "a paper",
    )
    assert names.place("lin.author") == ("lin", "author", "author")
    assert names.place("head") == ("head", None, None)
