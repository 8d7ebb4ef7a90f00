import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from tests.conftest import make_graph
from tests.packed.test_packed_model import graph_of, quantized


def test_an_altered_or_cut_file_never_gives_other_scores(tmp_path):
    model, data, layout, scores, _ = quantized("gcn", graph_of(sparse=True))
    export_packed(model, data, tmp_path / "m", layout=layout)
    content = (tmp_path / "m").read_bytes()

    @settings(deadline=None, max_examples=300)
    @given(st.integers(0, 8 * len(content) - 1), st.booleans())
    def alter(bit, cut):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "y").write_bytes(content[: bit // 8] if cut else damaged)
        try:
            found = load_packed(tmp_path / "y")
        except PackingError:
            return
        assert torch.equal(found(data), scores)

    alter()


def test_a_header_that_does_not_fit_its_tensors_is_refused(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    for change in (
        {"sparse_inputs": None},
        {"bit_widths": {"conv1": 4}},
        {"bit_widths": dict.fromkeys(fields["bit_widths"], 9)},
        {"bit_widths": dict.fromkeys(fields["bit_widths"], 5)},
        {"layout": {}},
        {"quantizer": {"rounding": "up"}},
        {"model": {"name": "none", "arguments": {}}},
    ):
        write_container(tmp_path / "y", "packed_model", {**fields, **change}, tensors)
        with pytest.raises(PackingError, match="/y: .*(expected|got)"):
            load_packed(tmp_path / "y")
    for missing in tensors:
        left = {name: tensor for name, tensor in tensors.items() if name != missing}
        write_container(tmp_path / "y", "packed_model", fields, left)
        with pytest.raises(PackingError):
            load_packed(tmp_path / "y")


def test_the_header_has_each_width_once_and_no_sizes_of_parts(tmp_path):
    model, data, layout, _, bits = quantized("agnn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    fields, _ = read_container(tmp_path / "m", "packed_model")
    assert sorted(fields) == [
        *("arguments", "bit_widths", "edges", "hops", "layout", "model", "model_fingerprint"),
        *("provenance", "quantizer", "sparse_inputs"),
    ]
    assert fields["bit_widths"] == bits.to_dict()
    assert fields["layout"] == json.loads(json.dumps(layout.to_dict()))
