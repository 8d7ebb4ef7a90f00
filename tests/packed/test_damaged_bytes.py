"""Any damaged byte of a packed file is told or changes nothing; so are numbers that are none."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.container import read_checksum, read_container, write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from tests.packed.test_packed_model import graph_of, quantized


def damages(content):
    """Bytes of a file of which a few differ, are missing, or are too many."""
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    places = st.one_of(
        st.integers(0, len(content)), st.integers(0, header_end), st.integers(0, 16)
    )
    pieces = st.one_of(
        st.binary(max_size=8), st.sampled_from([b"\xff" * 8, b"[" * 9000, b"1e999"])
    )

    def spliced(draw):
        start, length, piece = draw
        return content[:start] + piece + content[start + length :]

    cut = st.integers(0, len(content)).map(lambda end: content[:end])
    return st.one_of(st.tuples(places, st.integers(0, 12), pieces).map(spliced), cut)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model, data, layout, *_ = quantized("gat", graph_of(True))
    export_packed(model, data, folder / "m", layout=layout)
    return folder / "m", *read_container(folder / "m", "packed_model")


def test_damaged_bytes_are_told_or_change_nothing(exported, tmp_path):
    file, fields, tensors = exported

    @settings(deadline=None, max_examples=400, derandomize=True)
    @given(damages(file.read_bytes()))
    def check(content):
        (tmp_path / "y").write_bytes(content)
        try:
            found, of_name = read_container(tmp_path / "y", "packed_model")
        except PackingError as error:
            assert len(str(error)) < 400
            return
        assert found == fields
        assert of_name.keys() == tensors.keys()
        assert all(torch.equal(of_name[name], tensor) for name, tensor in tensors.items())

    check()


def test_a_damaged_file_is_told_where_its_checksum_is_not_compared(exported, tmp_path):
    file, *_ = exported

    @settings(deadline=None, max_examples=200, derandomize=True)
    @given(damages(file.read_bytes()))
    def check(content):
        (tmp_path / "y").write_bytes(content)
        for read in (
            read_checksum,
            lambda path: read_container(path, "packed_model", verify=False),
        ):
            try:
                read(tmp_path / "y")
            except PackingError as error:
                assert len(str(error)) < 400

    check()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_and_ranges_that_are_no_numbers_are_refused_at_load(value, exported, tmp_path):
    _, fields, tensors = exported
    checked = 0
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        write_container(tmp_path / "y", "packed_model", fields, {**tensors, name: changed})
        with pytest.raises(PackingError, match=r"/y: .*expected finite numbers, got NaN or inf"):
            load_packed(tmp_path / "y")
        checked += name.startswith(("weights.", "scale.", "zero_point."))
    assert checked == 16  # 8 weights, ranges of 3 hidden sites and of the input


@pytest.mark.parametrize(
    "header",
    [
        {"version": 3, "kind": "x" * 10**6, "fields": {}, "crc32": 0},
        {"version": "x" * 10**6, "kind": "packed_model", "fields": {}, "crc32": 0},
        {"version": 3, "kind": "packed_model", "fields": {}, "crc32": "x"},
        {"version": 3, "kind": "packed_model", "fields": {}, "crc32": 1e999},
        {"version": 3, "kind": "packed_model", "fields": 3, "crc32": 0},
        [1],
        {},
    ],
)
def test_a_header_of_other_types_is_told_in_a_short_line(header, tmp_path):
    text = json.dumps({"__metadata__": {"sgquant_optuna": json.dumps(header)}}).encode()
    (tmp_path / "y").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(PackingError) as error:
        read_container(tmp_path / "y", "packed_model")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_no_packed_file(make, tmp_path):
    make(tmp_path / "y")
    with pytest.raises(FileNotFoundError, match="packed file: expected a file at"):
        load_packed(tmp_path / "y")
