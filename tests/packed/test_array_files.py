import json
from contextlib import ExitStack, closing

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.packed import array_files


@pytest.fixture
def open_array():
    """The function itself; what it has opened is closed at the end."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(
            closing(array_files.open_array(*args, **kwargs))
        )


X = np.arange(12, dtype=np.float32).reshape(4, 3) / 4  # exact at 16 bits, too


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_matrix_of_any_byte_order_and_layout_is_read_as_float32(
    open_array, tmp_path, dtype, order
):
    np.save(tmp_path / "x.npy", np.asarray(X, dtype=dtype, order=order))
    array = open_array(tmp_path / "x.npy")
    assert array.shape == (4, 3) and array.is_float
    read = array.read(1, 4)
    assert read.dtype == np.float32 and read.flags.c_contiguous
    assert np.array_equal(read, X[1:4])
    assert np.array_equal(array.transposed().raw(0, 2), X.T[:2])


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float16, "F16"),
        (torch.bfloat16, "BF16"),
        (torch.float32, "F32"),
        (torch.float64, "F64"),
    ],
)
def test_a_tensor_of_safetensors_is_found_by_its_name(open_array, tmp_path, dtype, name):
    x = torch.from_numpy(X).to(dtype)
    save_torch({"a": torch.zeros(5), "x": x}, tmp_path / "x.safetensors")
    array = open_array(tmp_path / "x.safetensors", tensor="x")
    assert array.type_name == name and array.is_float
    assert np.array_equal(array.read(0, 4), X)


def test_a_value_beyond_float32_is_infinite(open_array, tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1e300, 1.0]]))
    array = open_array(tmp_path / "x.npy")
    assert array.read(0, 1).tolist() == [[np.inf, 1.0]]
    assert array.raw(0, 1).tolist() == [[1e300, 1.0]]


class Trap:
    def __reduce__(self):
        return open, ("unpickled", "w")


def test_python_objects_are_never_unpickled(open_array, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(
        GraphError, match=r"x.npy: expected numbers, got Python objects, which are"
    ):
        open_array(tmp_path / "x.npy")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"expected a matrix \[N, F\], got the shape \[3\]"),
        (np.zeros((2, 3, 4)), r"got the shape \[2, 3, 4\]"),
        (np.zeros((0, 3)), r"got the shape \[0, 3\]"),
        (np.zeros((3, 0)), r"got the shape \[3, 0\]"),
        (np.zeros((2, 2), dtype=[("a", "f4"), ("b", "f4")]), "got records"),
    ],
)
def test_what_is_no_matrix_is_refused(open_array, tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(GraphError, match=message):
        open_array(tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_file_that_is_cut_is_refused(open_array, tmp_path, kind, length):
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, X)
    else:
        save_file({"x": X}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(GraphError, match=rf"x.{kind}: (is cut|not a file of)"):
        open_array(path)


def test_a_file_that_goes_on_behind_its_array_is_refused(open_array, tmp_path):
    np.save(tmp_path / "x.npy", X)
    with open(tmp_path / "x.npy", "ab") as file:
        file.write(b"more")
    with pytest.raises(GraphError, match="is longer than its array: expected 176 bytes, got 180"):
        open_array(tmp_path / "x.npy")


def test_a_file_that_is_cut_while_it_is_read_is_told(open_array, tmp_path):
    np.save(tmp_path / "x.npy", X)
    array = open_array(tmp_path / "x.npy")
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(150)
    assert np.array_equal(array.read(0, 1), X[:1])
    with pytest.raises(GraphError, match="x.npy: was cut while it was read"):
        array.read(1, 4)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("x.pt", None, "expected a file .npy or .safetensors, got .pt"),
        ("x", None, "got no ending"),
        ("none.npy", None, r"none.npy: cannot read it \(No such file"),
        ("two.safetensors", None, r"holds 2 tensors \('a', 'b'\); name one"),
        ("two.safetensors", "c", "expected one of its tensors 'a', 'b', got 'c'"),
        ("x.npy", "a", "holds one array without a name, got the name 'a'"),
    ],
)
def test_a_file_that_cannot_be_taken_is_told_in_one_line(
    open_array, tmp_path, name, tensor, message
):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.pt").touch()
    save_file({"a": X, "b": X}, tmp_path / "two.safetensors")
    with pytest.raises((GraphError, ValueError), match=message) as raised:
        open_array(tmp_path / name, tensor=tensor)
    assert "\n" not in str(raised.value)


def test_a_type_of_safetensors_that_numpy_lacks_is_refused(open_array, tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}})
    content = len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(GraphError, match="expected floating-point numbers, got F8_E4M3"):
        open_array(tmp_path / "x.safetensors")
