"""Packed files equal what packing in memory gives, also after kills, and bad sources are told."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets, quantile_degree_edges
from sgquant_optuna.packed import feature_packing
from sgquant_optuna.packed.feature_packing import pack_features
from sgquant_optuna.packed.mapped_features import load_features
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.quantization.affine import affine_parameters
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.ranges import estimate_ranges


def features(num_nodes=700, num_columns=13, seed=0):
    return torch.randn(num_nodes, num_columns, generator=torch.Generator().manual_seed(seed))


def edges_of(num_nodes, seed=0):
    """Six edges for each node, most of which end in few nodes, so that degrees differ."""
    generator = torch.Generator().manual_seed(seed)
    ends = (num_nodes * torch.rand(2, 6 * num_nodes, generator=generator) ** 3).long()
    return ends


def in_memory(x, bit_widths, bucket=None):
    """What the quantizers of this package make of the matrix: one range for each bucket."""
    groups = None if bucket is None else bucket[:, None]
    lower, upper = estimate_ranges(x, groups, len(bit_widths), bit_widths, QuantizerConfig())
    numbers = torch.arange(len(bit_widths))
    ends = lower[numbers, numbers][:, None], upper[numbers, numbers][:, None]
    scale, zero_point = affine_parameters(*ends, torch.tensor(bit_widths)[:, None])
    return PackedFeatures.from_dense(x, bucket, bit_widths, scale, zero_point).to_dense()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(feature_packing, "_BLOCK_BYTES", 4 * 13 * 64)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_packed_file_equals_packing_in_memory(tmp_path, bits):
    x = features()
    np.save(tmp_path / "x.npy", x.numpy())
    packed = pack_features(tmp_path / "x.npy", tmp_path / "x.sgq", bits)
    assert torch.equal(packed.to_dense(), in_memory(x, [bits]))
    assert names(tmp_path) == ["x.npy", "x.sgq"]
    assert load_features(tmp_path / "x.sgq", verify=True).shape == (700, 13)


def test_at_32_bits_every_value_stays(tmp_path):
    x = features()
    packed = pack_features(x, tmp_path / "x.sgq", 32)
    assert torch.equal(packed.to_dense(), x)


@pytest.mark.parametrize("in_files", [True, False])
def test_buckets_and_their_ranges_are_those_of_the_degrees(tmp_path, in_files):
    x, edge_index = features(), edges_of(700)
    data = Data(x=x, edge_index=edge_index)
    bucket = AddDegreeBuckets(quantile_degree_edges(data, 3))(data).degree_bucket
    source, edges = x, edge_index
    if in_files:
        source, edges = tmp_path / "x.npy", tmp_path / "edges.npy"
        np.save(source, x.numpy())
        np.save(edges, edge_index.numpy())
    packed = pack_features(source, tmp_path / "x.sgq", [8, 4, 2], edges=edges)
    assert torch.equal(packed.to_dense(), in_memory(x, [8, 4, 2], bucket))
    assert packed.layout.bucket_rows == tuple(torch.bincount(bucket).tolist())
    degree = torch.bincount(edge_index[1], minlength=700)
    places = torch.from_numpy(packed._place.copy()).long()
    assert torch.equal(degree[places.argsort()], degree.sort(descending=True).values)


def test_one_width_by_degree_orders_the_rows_and_changes_no_value(tmp_path):
    x = features()
    by_degree = pack_features(x, tmp_path / "a.sgq", 4, edges=edges_of(700))
    plain = pack_features(x, tmp_path / "b.sgq", 4)
    assert torch.equal(by_degree.to_dense(), plain.to_dense())
    assert by_degree.stored_nbytes == plain.stored_nbytes + 4 * 700


def test_degree_edges_of_the_user_make_the_buckets(tmp_path):
    edge_index = torch.tensor([[0, 1, 2, 3, 0], [0, 0, 0, 1, 2]])  # degrees 3, 1, 1, 0
    packed = pack_features(
        features(4), tmp_path / "x.sgq", [8, 4, 32], edges=edge_index, degree_edges=[1, 3]
    )
    assert packed.layout.bucket_rows == (1, 2, 1)
    assert packed._place.tolist() == [0, 1, 2, 3]
    assert torch.equal(packed.rows(torch.tensor([0])), features(4)[:1])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_types_and_orders_are_packed_as_float32(tmp_path, dtype, order):
    x = features().half().float().numpy()
    np.save(tmp_path / "x.npy", np.asarray(x, dtype=dtype, order=order))
    packed = pack_features(tmp_path / "x.npy", tmp_path / "x.sgq", 8)
    assert torch.equal(packed.to_dense(), in_memory(torch.from_numpy(x), [8]))


def test_without_the_compiled_kernels_the_file_is_the_same(tmp_path, monkeypatch):
    x, edge_index = features(), edges_of(700)
    pack_features(x, tmp_path / "a.sgq", [4, 2], edges=edge_index)
    monkeypatch.setattr("sgquant_optuna.packed.kernels.find_spec", lambda name: None)
    pack_features(x, tmp_path / "b.sgq", [4, 2], edges=edge_index)
    assert (tmp_path / "a.sgq").read_bytes() == (tmp_path / "b.sgq").read_bytes()


SLOW = """
import sys, time
from sgquant_optuna.packed import feature_packing
feature_packing._BLOCK_BYTES, feature_packing._SECONDS = 4 * 13 * 64, 0
def progress(what, part):
    print(what, flush=True)
    time.sleep(0.01)
folder, *more = sys.argv[1:]
feature_packing.pack_features(
    folder + "/x.npy", folder + "/x.sgq", [4, 2], edges=folder + "/edges.npy", progress=progress
)
"""


@pytest.mark.parametrize("step", ["counting", "ordering", "measuring", "packing", "adding"])
def test_a_killed_packing_goes_on_where_it_was(tmp_path, step, monkeypatch):
    monkeypatch.setattr(feature_packing, "_SECONDS", 0)
    np.save(tmp_path / "x.npy", features(3000).numpy())
    np.save(tmp_path / "edges.npy", edges_of(3000).numpy())
    words = [sys.executable, "-c", SLOW, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        seen = 0
        for line in process.stdout:
            seen += line.startswith(step)
            if seen == (8 if step in ("measuring", "packing") else 1):
                process.send_signal(signal.SIGKILL)
                break
    assert not (tmp_path / "x.sgq").exists() and len(names(tmp_path)) == 3
    told = []
    pack_features(
        tmp_path / "x.npy",
        tmp_path / "x.sgq",
        [4, 2],
        edges=tmp_path / "edges.npy",
        progress=lambda what, part: told.append((what.split()[0], part)),
    )
    first_step, first_part = told[0]
    assert first_step == step
    if step in ("measuring", "packing"):
        assert first_part > 0.05
    assert names(tmp_path) == ["edges.npy", "x.npy", "x.sgq"]
    whole = tmp_path / "whole.sgq"
    pack_features(tmp_path / "x.npy", whole, [4, 2], edges=tmp_path / "edges.npy")
    assert whole.read_bytes() == (tmp_path / "x.sgq").read_bytes()


def stop_at(part_done):
    def progress(what, part):
        if what == "packing" and part >= part_done:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("change", ["source", "bits"])
def test_work_of_another_job_is_not_taken(tmp_path, change, monkeypatch):
    monkeypatch.setattr(feature_packing, "_SECONDS", 0)
    path, out = tmp_path / "x.npy", tmp_path / "x.sgq"
    np.save(path, features().numpy())
    with pytest.raises(KeyboardInterrupt):
        pack_features(path, out, 4, progress=stop_at(0.5))
    bits = 4
    if change == "source":
        np.save(path, features(seed=1).numpy())
    else:
        bits = 2
    packed = pack_features(path, out, bits)
    pack_features(path, tmp_path / "whole.sgq", bits)
    assert out.read_bytes() == (tmp_path / "whole.sgq").read_bytes()
    assert torch.equal(
        packed.to_dense(), in_memory(features(seed=int(change == "source")), [bits])
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [4, 32])
def test_a_value_without_a_code_is_told_with_its_row(tmp_path, value, bits):
    x = features(6400)
    x[5003, 7] = value
    np.save(tmp_path / "x.npy", x.numpy())
    message = rf"x.npy, row 5003, column 7: expected a finite float32, got {value}; clean"
    with pytest.raises(GraphError, match=message):
        pack_features(tmp_path / "x.npy", tmp_path / "x.sgq", bits)
    assert names(tmp_path) == ["x.npy"]


def test_a_float64_beyond_float32_is_told_as_it_stands(tmp_path):
    x = features().double().numpy()
    x[690, 2] = -1e300
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(GraphError, match=r"row 690, column 2: .* got -1e\+300; clean"):
        pack_features(tmp_path / "x.npy", tmp_path / "x.sgq")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64])
def test_features_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.ones((4, 3), dtype))
    name = np.dtype(dtype).name
    with pytest.raises(GraphError, match=f"expected floating-point features, got {name}; int"):
        pack_features(tmp_path / "x.npy", tmp_path / "x.sgq")


def test_a_tensor_is_chosen_by_its_name(tmp_path):
    x = features()
    save_file({"x": x.numpy(), "y": np.zeros((2, 2), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 tensors \('x', 'y'\); name one"):
        pack_features(tmp_path / "x.safetensors", tmp_path / "x.sgq")
    packed = pack_features(tmp_path / "x.safetensors", tmp_path / "x.sgq", 8, tensor="x")
    assert torch.equal(packed.to_dense(), in_memory(x, [8]))


@pytest.mark.parametrize("how", ["grown", "cut", "written"])
def test_a_source_that_changes_meanwhile_is_told(tmp_path, how):
    np.save(tmp_path / "x.npy", features().numpy())

    def change(what, part):
        if what == "packing" and part == 0:
            with open(tmp_path / "x.npy", "r+b") as file:
                size = file.seek(0, 2)
                if how == "written":
                    time.sleep(0.02)  # the clock of a file system is coarse
                    file.seek(size // 2)
                    file.write(b"1234")
                else:
                    file.truncate(size + 10 if how == "grown" else size - 600)

    with pytest.raises(GraphError, match=r"x.npy: (changed|was cut) while it was read"):
        pack_features(tmp_path / "x.npy", tmp_path / "x.sgq", progress=change)
    assert names(tmp_path) == ["x.npy"]


def test_too_small_a_disk_is_told_before_anything_is_packed(tmp_path, monkeypatch):
    told = []
    found = os.statvfs_result((4096, 4096, 10, 5, 2, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    message = r"x.sgq: expected 0.0 MB free on its disk for 0.0 MB of packed features, got 0.0 MB"
    with pytest.raises(ValueError, match=message):
        pack_features(
            features(), tmp_path / "x.sgq", 32, progress=lambda what, part: told.append(what)
        )
    assert not told and names(tmp_path) == []


@pytest.mark.parametrize(
    ("bits", "options", "message"),
    [
        (9, {}, r"bits: expected one of \(1, 2, .*, got 9"),
        (0, {}, "got 0"),
        (True, {}, "got True"),
        ([8, 4], {}, "bits: expected one bit width, got 2; several belong to buckets"),
        ([], {"edges": edges_of(700)}, "bits: expected 1 to 256 bit widths, got 0"),
        (4, {"degree_edges": [3]}, "degree edges: expected 0 for 1 bit widths by degree, got 1"),
        ([8, 4], {"edges": edges_of(700), "degree_edges": [3, 5]}, "expected 1 for 2 bit widths"),
        ([8, 4], {"edges": edges_of(700), "degree_edges": [0]}, "degree edges: expected positive"),
        (
            [8, 4],
            {"edges": torch.tensor([[0], [1]])},
            "degrees: expected 2 buckets of about equal",
        ),
        (4, {"edges": torch.tensor([[0], [700]])}, "edge 0: expected nodes 0 to 699, got 700"),
        (4, {"edges": torch.tensor([[0, -1], [1, 0]])}, "edge 1: expected nodes .* got -1"),
        (4, {"edges": torch.zeros(2, 3)}, r"expected integers \[2, E\], got torch.float32 \[2, 3"),
        (4, {"edges": torch.zeros(3, 2).long()}, r"got torch.int64 \[3, 2\]"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_one_line(tmp_path, bits, options, message):
    with pytest.raises((ValueError, GraphError), match=message) as raised:
        pack_features(features(), tmp_path / "x.sgq", bits, **options)
    assert "\n" not in str(raised.value) and names(tmp_path) == []


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 2).long()])
def test_a_tensor_that_holds_no_features_is_refused(tmp_path, x):
    with pytest.raises(GraphError, match=r"features: expected dense floating-point numbers"):
        pack_features(x, tmp_path / "x.sgq")


def test_a_file_that_is_there_stays(tmp_path):
    np.save(tmp_path / "x.npy", features().numpy())
    (tmp_path / "x.sgq").write_text("old")
    with pytest.raises(ValueError, match="x.sgq: expected no file yet, got one"):
        pack_features(tmp_path / "x.npy", tmp_path / "x.sgq")
    assert (tmp_path / "x.sgq").read_text() == "old"
    pack_features(tmp_path / "x.npy", tmp_path / "x.sgq", overwrite=True)
    assert load_features(tmp_path / "x.sgq").shape == (700, 13)
    with pytest.raises(ValueError, match="x.npy: expected another file than those that are read"):
        pack_features(tmp_path / "x.npy", tmp_path / "x.npy", overwrite=True)


BIG = """
import sys
from pathlib import Path
from sgquant_optuna.packed.feature_packing import pack_features
pack_features(sys.argv[1] + "/x.npy", sys.argv[1] + "/x.sgq", 1)
# Not by getrusage: its peak begins with that of the process that started this one.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of 2 GiB, of zeros that take no room on the disk, in less than 512 MiB."""
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, 1024), np.float32))
    header["shape"] = (1 << 19, 1024)
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (1 << 31))
    words = [sys.executable, "-c", BIG, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 512 * 1024
    assert load_features(tmp_path / "x.sgq").shape == (1 << 19, 1024)


def test_a_full_disk_while_packing_is_told_and_work_stays(tmp_path):
    """The disk is taken before the start; where that cannot be told, a limit does as the disk."""
    np.save(tmp_path / "x.npy", features().numpy())
    code = f"""
import resource, signal
from sgquant_optuna.packed.feature_packing import pack_features
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
pack_features({str(tmp_path / "x.npy")!r}, {str(tmp_path / "x.sgq")!r}, 8)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "x.sgq: cannot write it (File too large)" in done.stderr.splitlines()[-1]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000
    assert len(names(tmp_path)) == 2
    pack_features(tmp_path / "x.npy", tmp_path / "x.sgq", 8)
    assert names(tmp_path) == ["x.npy", "x.sgq"]
