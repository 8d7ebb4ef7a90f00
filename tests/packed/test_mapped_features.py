"""A packed file is mapped: rows are read alone, by many processes, and damage is told."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.feature_packing import pack_features
from sgquant_optuna.packed.mapped_features import KIND, MappedFeatures, load_features
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import PackedTensor


@pytest.fixture
def packed(tmp_path):
    """200 nodes in buckets of 8, 32 and 3 bits by degree."""
    x = torch.randn(200, 11, generator=torch.Generator().manual_seed(0))
    ends = (200 * torch.rand(2, 900, generator=torch.Generator().manual_seed(1)) ** 3).long()
    return pack_features(x, tmp_path / "x.sgq", [8, 32, 3], edges=ends)


def test_rows_are_read_in_any_order_and_may_repeat(packed):
    whole = packed.to_dense()
    index = torch.tensor([7, 199, 0, 7])
    assert torch.equal(packed.rows(index), whole[index])
    assert packed.rows(torch.empty(0, dtype=torch.long)).shape == (0, 11)
    blocks = [block for _, block in packed.blocks()]
    assert torch.equal(torch.cat(blocks), whole)


@pytest.mark.parametrize("index", [[200], [-1], [0, 500]])
def test_a_node_that_is_not_there_is_told(packed, index):
    with pytest.raises(IndexError, match="nodes: expected 0 to 199, got"):
        packed.rows(torch.tensor(index))


def test_the_file_is_one_of_safetensors_whose_rows_begin_with_a_page(packed):
    fields, tensors = read_container(packed.path, KIND)
    assert fields["shape"] == [200, 11] and fields["bit_widths"] == [8, 32, 3]
    assert int.from_bytes(packed.path.read_bytes()[:8], "little") % 4096 == 4096 - 8
    assert packed.stored_nbytes == sum(tensor.nbytes for tensor in tensors.values())
    low, middle, high = packed.layout.bucket_rows  # rows of 11, 44 and 5 bytes, by lines of 64
    sizes = [-(-count * size // 64) * 64 for count, size in ((low, 11), (middle, 44), (high, 5))]
    assert packed.stored_nbytes == sum(sizes) + 4 * 200 + 8 * 3


def test_a_file_of_packed_features_opens_by_the_same_function(tmp_path):
    scale, zero_point = torch.tensor([[0.25]]), torch.tensor([[0.0]])
    PackedFeatures.from_dense(torch.ones(3, 2), None, [4], scale, zero_point).save(tmp_path / "x")
    assert isinstance(load_features(tmp_path / "x"), PackedFeatures)
    with pytest.raises(PackingError, match="expected packed_rows of version 3, got 'packed_feat"):
        MappedFeatures(tmp_path / "x")


def test_a_layer_takes_them_as_a_tensor(packed):
    x, weight = PackedTensor(packed), torch.randn(4, 11)
    whole = packed.to_dense()
    assert torch.equal(x[torch.tensor([3, 1])], whole[[3, 1]])
    torch.testing.assert_close(torch.nn.functional.linear(x, weight), whole @ weight.t())


def test_no_warning_is_shown_and_nothing_can_be_written(packed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = MappedFeatures(packed.path).rows(torch.arange(5))
    rows.zero_()  # a copy
    assert MappedFeatures(packed.path).rows(torch.arange(5)).any()


def test_a_pickle_holds_the_path_alone(packed):
    content = pickle.dumps(packed)
    assert len(content) < 400
    assert torch.equal(pickle.loads(content).to_dense(), packed.to_dense())


def test_another_file_under_the_name_of_a_pickled_one_is_refused(packed):
    content = pickle.dumps(packed)
    pack_features(torch.randn(200, 11), packed.path, 4, overwrite=True)
    with pytest.raises(PackingError, match="expected the file that was pickled by name, got an"):
        pickle.loads(content)


def _sum_of(features, index):
    return float(features.rows(index).sum())


def test_a_process_that_is_started_anew_maps_the_same_file(packed):
    index = torch.arange(50)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_sum_of, (packed, index)) == _sum_of(packed, index)


@pytest.mark.parametrize("how", ["cut", "grown"])
def test_a_file_that_changes_its_size_while_it_is_mapped_is_told(packed, how):
    size = packed.path.stat().st_size
    os.truncate(packed.path, 100 if how == "cut" else size + 1)
    with pytest.raises(PackingError, match=rf"x.sgq: had {size:,} bytes when it was opened and"):
        packed.rows(torch.arange(3))


def test_an_altered_file_never_gives_other_numbers(packed, tmp_path):
    content, whole = packed.path.read_bytes(), packed.to_dense()

    @settings(deadline=None, max_examples=200)
    @given(st.integers(0, 8 * len(content) - 1), st.booleans())
    def alter(bit, cut):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "y").write_bytes(content[: bit // 8] if cut else damaged)
        try:
            opened = load_features(tmp_path / "y", verify=True)
        except PackingError as error:
            assert "\n" not in str(error)
            return
        assert torch.equal(opened.to_dense(), whole)  # a space of the header

    alter()


def with_fields(packed, path, **changes):
    """Write the file with other fields, as somebody who crafts one would."""
    content = packed.path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    frame = json.loads(content[8 : 8 + length])
    header = json.loads(frame["__metadata__"]["sgquant_optuna"])
    header["fields"].update(changes)
    frame["__metadata__"]["sgquant_optuna"] = json.dumps(header)
    path.write_bytes(
        content[:8] + json.dumps(frame).encode().ljust(length) + content[8 + length :]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**31, 11]},
        {"shape": [200, 12]},
        {"shape": [-200, 11]},
        {"shape": 3},
        {"bucket_rows": [0, 0, 200]},
        {"bucket_rows": [300, -200, 100]},
        {"bucket_rows": [200]},
        {"bucket_rows": None},
        {"bit_widths": [8, 32, 9]},
        {"by_degree": False},
        {"by_degree": 1},
    ],
)
def test_fields_that_do_not_fit_the_rows_are_refused(packed, tmp_path, changes):
    with_fields(packed, tmp_path / "y", **changes)
    with pytest.raises(PackingError, match="/y: ") as raised:
        load_features(tmp_path / "y")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("place", [-1, 200, 2**31 - 1])
def test_places_beyond_the_rows_are_told(packed, place):
    offset = packed._map.find(packed._place.tobytes())
    with open(packed.path, "r+b") as file:
        file.seek(offset)
        file.write(np.array([place], np.int32).tobytes())
    with pytest.raises(PackingError, match="places of its rows are damaged"):
        load_features(packed.path).rows(torch.arange(3))


def test_a_file_that_is_not_ours_is_told(tmp_path):
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(PackingError, match="x: not a packed file of ours, or a damaged one"):
        load_features(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="expected a file at"):
        load_features(tmp_path / "none")


LIMITED = """
import resource, sys, torch
from sgquant_optuna.packed.mapped_features import load_features
def memory(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
before = memory("VmRSS")
features = load_features(sys.argv[1])
features.rows(torch.tensor([0, 99, 123_456_789]))
print(features.shape[0], memory("VmRSS") - before)
"""


def test_a_file_larger_than_memory_opens_and_gives_rows(tmp_path):
    """Rows of 2 TiB, which are a hole in the file: only the pages of three rows are read."""
    pack_features(torch.randn(4, 16), tmp_path / "x.sgq", 8)
    num_nodes, content = 2**31 - 1, (tmp_path / "x.sgq").read_bytes()
    length = int.from_bytes(content[:8], "little")
    frame = json.loads(content[8 : 8 + length])
    header = json.loads(frame["__metadata__"]["sgquant_optuna"])
    header["fields"] |= {"shape": [num_nodes, 1024], "bucket_rows": [num_nodes]}
    frame["__metadata__"]["sgquant_optuna"] = json.dumps(header)
    size = num_nodes * 1024
    for name, begin, end in (
        ("data", 0, size),
        ("place", size, size),
        ("scale", size, size + 4),
        ("zero_point", size + 4, size + 8),
    ):
        frame[name]["data_offsets"] = [begin, end]
    frame["data"]["shape"] = [size]
    with open(tmp_path / "big.sgq", "wb") as file:
        file.write(content[:8] + json.dumps(frame).encode().ljust(length))
        file.seek(size, 1)
        file.write(content[-8:])
    words = [sys.executable, "-c", LIMITED, str(tmp_path / "big.sgq")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    shape, grown = map(int, done.stdout.split())
    assert shape == num_nodes and grown < 32 * 1024
