"""Files that somebody altered and gave a right checksum again."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import GraphError, PackingError, SgquantError
from sgquant_optuna.packed import model_file
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.evaluation import evaluate_packed
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.integers import read_integers
from sgquant_optuna.packed.packed_features import PackedFeatures
from tests.packed.test_any_model import KINDS, packed_and_expected
from tests.packed.test_packed_features import make
from tests.packed.test_packed_model import (
    BUILT_IN,
    DIVIDED,
    WIDTHS,
    divided_graph,
    graph_of,
    quantized,
)

ONE = torch.ones(1, 1)
DTYPES = (torch.float64, torch.float16, torch.int32, torch.uint8, torch.bool)
RESHAPES = {
    "flat": lambda t: t.reshape(-1),
    "cut": lambda t: t.reshape(-1)[:-1],
    "deeper": lambda t: t[None],
    "turned": lambda t: t.t() if t.dim() == 2 else t,
    "twice": lambda t: torch.cat([t.reshape(-1) if t.dim() == 0 else t] * 2),
    "nothing": lambda t: t.new_empty(0),
}
NUMBERS = (torch.nan, torch.inf, -torch.inf, -1.0, 0.0, 0.5, 3.0, 255.0)
OTHERS = (
    None, True, False, "x", "482", "", -1, 0, 1, 2, 5, 33, 10**9, 2**63, 4.5, float("nan"), [], {},
    [4.5, 8, 2], [10**9, 10**9], {"x": 1},
)  # fmt: skip


def paths(fields, above=()):
    """Every place in a JSON object."""
    inside = fields.items() if isinstance(fields, dict) else enumerate(fields)
    for key, value in inside:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*above, key))


@st.composite
def alterations(draw, fields, tensors):
    """Fields and tensors of which one thing differs, and what that is."""
    fields, tensors = copy.deepcopy(fields), dict(tensors)
    if draw(st.booleans()):
        path = draw(st.sampled_from(list(paths(fields))))
        holder = fields
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.integers(0, 3)) == 0:
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(st.sampled_from(OTHERS))
        return fields, tensors, path
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.sampled_from(["values", "one value", "type", "shape", "none"]))
    tensor = tensors.pop(name)
    if how == "type":
        tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
    elif how == "shape":
        tensors[name] = RESHAPES[draw(st.sampled_from(sorted(RESHAPES)))](tensor)
    elif how != "none":
        of_type = NUMBERS if tensor.dtype.is_floating_point else (0, 1, 2, 15, 127, 128, 255)
        value = draw(st.sampled_from(of_type))
        place = slice(None)
        if how == "one value" and tensor.numel():
            place = draw(st.integers(0, tensor.numel() - 1))
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[place] = value
    return fields, tensors, (name,)


def leads_inside(part):
    """Whether each column and each code of an input is one that exists."""
    if part.is_sparse:
        index = torch.arange(part.shape[0])
        column = part._places.columns(index)
        row = index.repeat_interleave(part._places.crow.diff())
        rises = (row * part.shape[1] + column).diff() > 0
        if not bool(((column >= 0) & (column < part.shape[1])).all() and rises.all()):
            return False
    if part.store in ("sparse codebook", "sparse row codebook"):
        code = read_integers(part.tensors["codes"], part._num_codes, part._code_bits)
        return bool((code < len(part.tensors["values"])).all())
    return True


@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
def test_altered_packed_features_are_refused_or_hold_numbers(axis, tmp_path):
    make(9, 5, [4, 32, 2], axis)[0].save(tmp_path / "x")
    fields, tensors = read_container(tmp_path / "x", "packed_features")

    @settings(deadline=None, max_examples=120)
    @given(alterations(fields, tensors))
    def alter(altered):
        write_container(tmp_path / "y", "packed_features", *altered[:2])
        try:
            opened = PackedFeatures.open(tmp_path / "y")
        except PackingError as error:
            assert str(error).startswith(f"{tmp_path / 'y'}: ")
            return
        for bucket in range(len(opened.bit_widths)):
            assert opened.starts[bucket] + opened.packed_rows(bucket).numel() <= len(opened.data)
        assert bool(torch.isfinite(opened.to_dense()).all())

    alter()


@pytest.mark.parametrize("with_features", [True, False], ids=["whole", "alone"])
@pytest.mark.parametrize(
    ("name", "graph", "widths"),
    [
        *((name, graph_of(sparse), WIDTHS) for name in BUILT_IN for sparse in (False, True)),
        *(("gcn", divided_graph(store), (32, 2)) for store in DIVIDED),
    ],
    ids=[*(f"{name}-{x}" for name in BUILT_IN for x in ("dense", "sparse")), *DIVIDED],
)
def test_altered_packed_models_are_refused_or_give_scores(
    name, graph, widths, with_features, tmp_path, monkeypatch
):
    parts = []

    class SeenPart(InputPart):
        def __init__(self, *args):
            super().__init__(*args)
            parts.append(self)

    monkeypatch.setattr(model_file, "InputPart", SeenPart)
    model, data, layout, scores, _ = quantized(name, graph, widths=widths)
    export_packed(model, data, tmp_path / "m", layout=layout, with_features=with_features)
    fields, tensors = read_container(tmp_path / "m", "packed_model")

    @settings(deadline=None, max_examples=80)
    @given(alterations(fields, tensors))
    def alter(altered):
        write_container(tmp_path / "y", "packed_model", *altered[:2])
        parts.clear()
        try:
            packed = load_packed(tmp_path / "y")
        except SgquantError:
            return
        assert all(leads_inside(part) for part in parts)
        try:
            found = packed(data)
        except GraphError:
            if not with_features:  # a range, a size or a type of another model
                return
            assert altered[2][0] == "edges"  # as good as those of another graph
            return
        assert found.shape == scores.shape
        assert bool(torch.isfinite(found).all())

    alter()


@pytest.mark.parametrize("kind", ["batch norm", "concatenated", "tied"])
def test_altered_uses_of_the_features_are_refused_or_give_scores(kind, tmp_path):
    graph = graph_of(True)
    _, scores, *_ = packed_and_expected(KINDS[kind], graph, tmp_path)
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    part = {name: fields[name] for name in ("features", "tied") if name in fields}
    stored = {n: t for n, t in tensors.items() if not n.startswith(("scale", "zero", "bucket"))}

    @settings(deadline=None, max_examples=100)
    @given(alterations(part, stored))
    def alter(altered):
        others = {name: t for name, t in tensors.items() if name not in stored}
        write_container(
            tmp_path / "y", "packed_model", {**fields, **altered[0]}, {**others, **altered[1]}
        )
        try:
            found = load_packed(tmp_path / "y", KINDS[kind]())(graph)
        except SgquantError:
            return
        except (ValueError, RuntimeError):
            assert altered[2][:2] == ("features", "shape")  # the user's own layer refuses it
            return
        assert found.shape == scores.shape

    alter()


@pytest.mark.parametrize(
    ("store", "rows"),
    [
        ("codebook", [[0, 1, 2], [3, 4, 5]]),
        ("sparse codebook", [[0, 1, 2], [3, 4, 5]]),
        ("sparse row codebook", [[0, 1, 1], [2, 0, 2], [3, 3, 0]]),
    ],
)
def test_codes_without_a_value_are_refused(store, rows):
    x = torch.tensor(rows, dtype=torch.float32)
    part = InputPart.from_dense(x, store, 32, ONE, 0 * ONE, "nearest")
    codes = torch.full_like(part.tensors["codes"], 0xFF)
    with pytest.raises(PackingError, match="codes of the input: expected some below"):
        InputPart(store, 32, part.shape, {**part.tensors, "codes": codes}, part.count_bits)


def test_a_value_of_a_row_that_is_no_number_is_refused():
    part = InputPart.from_dense(torch.eye(3) * 2, "sparse row values", 32, ONE, ONE, "nearest")
    values = torch.tensor([2.0, torch.nan, 2.0])
    with pytest.raises(PackingError, match="values of the input: expected finite numbers"):
        InputPart(part.store, 32, part.shape, {**part.tensors, "values": values}, part.count_bits)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": -ONE},
        {"scale": ONE * torch.nan},
        {"scale": ONE.double()},
        {"zero_point": ONE * torch.inf},
        {"zero_point": ONE.half()},
        {"zero_point": torch.ones(6, 1)},
        {"scale": ONE * 1e38},
    ],
)
def test_ranges_of_an_input_that_cannot_be_are_refused(change):
    part = InputPart.from_dense(torch.eye(6), "rows", 4, ONE, 0 * ONE, "nearest")
    with pytest.raises(PackingError, match="of the input: expected"):
        InputPart("rows", 4, (6, 6), {**part.tensors, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"scale": ONE.double()},
        {"scale": ONE.int()},
        {"zero_point": ONE.half()},
        {"bucket": torch.zeros(3, dtype=torch.int64)},
        {"bit_widths": (4.5,)},
        {"bit_widths": "4"},
        {"num_columns": 2.0},
        {"data": torch.zeros(6, dtype=torch.uint8)[::2]},
    ],
)
def test_parts_of_features_that_cannot_be_are_refused(change):
    parts = {
        "data": torch.zeros(3, dtype=torch.uint8),
        "bucket": torch.zeros(3, dtype=torch.uint8),
        "bit_widths": (4,),
        "scale": ONE,
        "zero_point": ONE,
        "num_columns": 2,
    }
    assert PackedFeatures(**parts).to_dense().tolist() == [[1.0, 1.0]] * 3
    with pytest.raises(PackingError, match="expected"):
        PackedFeatures(**{**parts, **change})


@pytest.mark.parametrize(
    ("field", "value"),
    [("bit_widths", "482"), ("bit_widths", [4.5, 8, 2]), ("shape", [10**10, 5])],
)
def test_a_header_of_features_says_what_was_expected(field, value, tmp_path):
    make(9, 5, [4, 8, 2])[0].save(tmp_path / "x")
    fields, tensors = read_container(tmp_path / "x", "packed_features")
    write_container(tmp_path / "y", "packed_features", {**fields, field: value}, tensors)
    with pytest.raises(PackingError, match="/y: .*expected"):
        PackedFeatures.open(tmp_path / "y")


@pytest.fixture
def packed_gcn(tmp_path):
    """Writes a packed GCN with other fields."""
    model, data, layout, *_ = quantized("gcn", graph_of(sparse=True))
    export_packed(model, data, tmp_path / "m", layout=layout)
    fields, tensors = read_container(tmp_path / "m", "packed_model")

    def write(**change):
        left = {key: value for key, value in {**fields, **change}.items() if value is not None}
        write_container(tmp_path / "y", "packed_model", left, tensors)
        return tmp_path / "y"

    return fields, write


def test_a_header_of_a_model_says_what_was_expected(packed_gcn):
    fields, write = packed_gcn
    site = "conv2/embedding/bucket0"
    widths = fields["bit_widths"]
    for change, message in (
        ({"bit_widths": {**widths, site: 9}}, f"bit width of {site}: expected one of"),
        ({"bit_widths": {**widths, "conv9/embedding": 4}}, "expected one for each site"),
        ({"bit_widths": {k: w for k, w in widths.items() if k != site}}, "one for each site"),
        ({"edges": None}, "expected no tensor bucket"),
        ({"edges": 5}, "edges: expected an object, got 5"),
        ({"edges": {"edges": -1, "hash": "0"}}, "edges of the graph: expected a whole number"),
        ({"model_fingerprint": {"class": "GCN"}}, "expected a text as hash, got None"),
        ({"quantizer": {"rounding": "up"}}, "rounding: expected one of"),
        ({"sparse_inputs": None}, "sparse_inputs: expected a list"),
        ({"sparse_inputs": ["conv2/embedding"]}, "expected some of .*conv1/embedding"),
        ({"sparse_inputs": [5]}, "expected some of .*got 5"),
        ({"provenance": None}, "expected an object as provenance"),
    ):
        with pytest.raises(PackingError, match=f"/y: .*{message}"):
            load_packed(write(**change))


def test_a_layout_that_contradicts_itself_is_refused(packed_gcn):
    fields, write = packed_gcn
    sizes, widths = fields["layout"]["sizes"], fields["bit_widths"]
    first, hidden = sizes["conv1/embedding/bucket0"], sizes["conv2/embedding/bucket0"]

    def layout(*left_out, **changed):
        kept = {name: size for name, size in {**sizes, **changed}.items() if name not in left_out}
        return {
            "layout": {**fields["layout"], "sizes": kept},
            "bit_widths": {name: widths.get(name, 4) for name in kept},
        }

    def of_counts(size):
        return {**size["content"], "row_value": "1/count", "lossless": [1, 3, 4]}

    inputs = [name for name in sizes if name.startswith("conv1")]
    for change, message in (
        (layout(**{inputs[0]: {**first, "num_columns": 5}}), "one number of columns"),
        (
            layout(**{name: {**sizes[name], "num_columns": 5} for name in inputs}),
            "accounting says|counts|columns|input|packed integers",
        ),
        (layout(**{inputs[0]: {**first, "num_rows": 1}}), "expected 60 rows in all"),
        (layout(**{inputs[0]: {**first, "content": None}}), "expected a content for all"),
        (
            {
                **layout(*inputs),
                "sparse_inputs": [],
                "arguments": {"conv2": fields["arguments"]["conv2"]},
            },
            "expected a site that takes the graph's features",
        ),
        (layout(**{"conv2/embedding": hidden}), "expected one site or one for each of 3"),
        (layout(**{"conv2/embedding/bucket3": hidden}), "expected one site or one for each"),
        (layout(**{"conv2/attention/bucket0": hidden}), "expected one site or one for each"),
        (layout(**{"conv2/attention": first}), "expected a content for all"),
        (layout(**{inputs[0]: {**first, "num_rows": 10**10}}), "expected a whole number"),
        (
            layout(**{inputs[0]: {**first, "content": {**first["content"], "row_value": "2"}}}),
            "row_value of .*: expected null or one of",
        ),
        (
            layout(**{n: {**sizes[n], "content": of_counts(sizes[n])} for n in inputs}),
            "expected .* for sparse 1/count, got",
        ),
    ):
        with pytest.raises(PackingError, match=f"/y: .*({message})"):
            load_packed(write(**change))


def test_tensors_that_no_layer_takes_are_refused(packed_gcn):
    fields, write = packed_gcn
    widths = {**fields["bit_widths"], **{f"conv2/embedding/bucket{b}": 32 for b in range(3)}}
    with pytest.raises(PackingError, match=r"/y: .*expected no tensor scale\.conv2/embedding"):
        load_packed(write(bit_widths=widths))


def test_sizes_that_the_weights_cannot_have_are_not_made(packed_gcn):
    fields, write = packed_gcn
    arguments = {**fields["model"]["arguments"], "hidden_channels": 10**9}
    with pytest.raises(PackingError, match="hidden_channels of the model: expected"):
        load_packed(write(model={"name": "gcn", "arguments": arguments}))


def test_a_model_of_unknown_origin_is_not_evaluated(packed_gcn):
    _, write = packed_gcn
    with pytest.raises(PackingError, match="does not name its data set"):
        evaluate_packed(write(provenance={"dataset": "digits"}))
