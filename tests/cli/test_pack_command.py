"""``sgquant pack``: a line of what was packed, or a line of what was wrong."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sgquant_optuna import load_features, load_graph, pack_features
from sgquant_optuna.cli import main


def run(capsys, *arguments):
    try:
        main(["pack", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def files():
    """A file of features, one of edges, and one of both, in the folder of the test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=generator)
    edge_index = (300 * torch.rand(2, 2000, generator=generator) ** 3).long()
    np.save("x.npy", x.numpy())
    np.save("edges.npy", edge_index.numpy())
    save_file({"x": x, "edge_index": edge_index}, "both.safetensors")


def test_a_file_is_packed_under_its_own_name(capsys):
    code, out, err = run(capsys, "x.npy")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    # 300 rows of 8 bytes fill 38 lines of 64 bytes; a scale and a zero point.
    assert first == "x.sgq: 300 x 16 at 4 bits, 0.002 MB, 7.9 times smaller than float32"
    assert re.fullmatch(r"0\.019 MB of float32 in \d+\.\d s, \d\.\d\d GB/s", second)
    packed = pack_features("x.npy", "y.sgq", 4)
    assert torch.equal(load_features("x.sgq").to_dense(), packed.to_dense())


def test_widths_by_degree_are_told_with_their_rows(capsys):
    words = "--bits", "8,4,1", "--by-degree", "--out", "y.sgq"
    code, out, _ = run(capsys, "x.npy", *words, "--edges", "edges.npy", "--quiet")
    assert code == 0
    assert "300 x 16 at 8, 4, 1 bits" in out
    rows = re.search(r"from the lowest degree to the highest: (\d+), (\d+), (\d+)\n", out).groups()
    assert sum(map(int, rows)) == 300
    more = "--tensor", "x", "--edges", "both.safetensors", "--overwrite"
    assert run(capsys, "both.safetensors", *words, *more)[0] == 0
    assert load_features("y.sgq").layout.bucket_rows == tuple(map(int, rows))
    own = "--bits", "8,4", "--degree-edges", "5", "--by-degree", "--edges", "edges.npy"
    assert run(capsys, "x.npy", *own)[0] == 0
    degree = np.bincount(np.load("edges.npy")[1], minlength=300)
    expected = (int((degree < 5).sum()), int((degree >= 5).sum()))
    assert load_features("x.sgq").layout.bucket_rows == expected


def test_a_data_set_is_packed_with_its_own_edges(capsys):
    code, out, _ = run(capsys, "digits", "--bits", "8", "--by-degree")
    assert code == 0 and out.startswith("digits.sgq: 1,797 x 64 at 8 bits")
    x = load_graph("digits").x
    assert (load_features("digits.sgq").to_dense() - x).abs().max() <= x.max() / 255


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x.npy --bits 9", "bits: expected one of (1, 2, 3, 4, 5, 6, 7, 8, 16, 32), got 9"),
        ("x.npy --bits four", "--bits: expected numbers such as 1,2,4,8, got 'four'"),
        ("x.npy --bits 8,4", "bits: expected one bit width, got 2; several belong to buckets"),
        ("x.npy --by-degree", "--by-degree: expected --edges FILE with edge_index for features"),
        ("x.npy --edges edges.npy", "--edges: expected together with --by-degree, got it alone"),
        ("x.npy --degree-edges 4", "--degree-edges: expected together with --by-degree, got it"),
        ("edges.npy", "edges.npy: expected floating-point features, got int64; integers may be"),
        ("x.npy --by-degree --edges x.npy", "x.npy: expected integers [2, E], got float32"),
        ("both.safetensors", "both.safetensors: holds 2 tensors ('edge_index', 'x'); name one"),
        ("both.safetensors --tensor y", "expected one of its tensors 'edge_index', 'x', got 'y'"),
        ("digits --tensor x", "--tensor: expected a file .safetensors, got the data set digits"),
        ("none.npy", "none.npy: cannot read it (No such file or directory)"),
        ("Coral", "did you mean Cora?"),
        ("x.npy --out there.sgq", "there.sgq: expected no file yet, got one; remove it, or"),
        ("x.npy --out none/x.sgq", "none/x.sgq: expected a file in an existing folder, got none"),
        ("x.npy --out folder", "folder: expected a file to write, got a folder"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, words, message):
    (tmp_path / "there.sgq").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_heavy_is_imported_before_a_mistake_on_the_line():
    code = (
        "import sys\nfrom sgquant_optuna.cli import main\n"
        "try:\n    main(['pack', 'x.npy', '--edges', 'e.npy'])\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out == "2 False\n"
