import json
from dataclasses import replace

import pytest

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths, Site
from sgquant_optuna.study.assignment import Assignment, load_assignment

ASSIGNMENT = Assignment(
    BitWidths(
        {
            Site("conv1", "embedding", 0): 1,
            Site("conv1", "embedding", 1): 16,
            Site("conv1", "attention"): 32,
        }
    ),
    QuantizerConfig.paper(),
    (4,),
    "lwq+taq",
    {"graph": {"nodes": 3}},
    {"study": "mine", "trial": 2},
)


def test_a_saved_assignment_loads_the_same(tmp_path):
    ASSIGNMENT.save(tmp_path / "a.json")
    found = load_assignment(tmp_path / "a.json")
    assert found == ASSIGNMENT
    assert found.num_buckets == 2
    assert found.candidates == (1, 16, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "expected schema"),
        ({"version": 2}, "expected version 1, got 2"),
        ({"bit_widths": {"conv1": 4}}, "site name: expected"),
        ({"bit_widths": {"conv1/embedding": 9}}, "expected one of"),
        ({"bit_widths": [4]}, "bit_widths: expected an object, got list"),
        ({"bit_widths": {"conv1/embedding/bucket01": 4}}, "site name: expected"),
        ({"bit_widths": {"conv1/embedding/bucket2": 4}}, "expected degree buckets below 2, got"),
        ({"quantizer": {"rounding": "up"}}, "rounding: expected one of"),
        ({"quantizer": {"speed": 1}}, "unexpected keyword"),
        ({"quantizer": [["axis", "row"]]}, "quantizer: expected an object, got list"),
        ({"quantizer": {"percentile": "x" * 10**6}}, "not supported between"),
        ({"quantizer": {"rounding": "x" * 10**6}}, "rounding: expected one of"),
        ({"quantizer": {"x" * 10**6: 1}}, "unexpected keyword"),
        ({"degree_edges": [8, 4]}, "degree edges: expected positive integers"),
        ({"degree_edges": [4.0]}, "degree edges: expected positive integers"),
        ({"degree_edges": ["4"]}, "degree edges: expected positive integers"),
        ({"degree_edges": [True]}, "degree edges: expected positive integers"),
        ({"degree_edges": "4"}, "degree_edges: expected a list, got str"),
        ({"degree_edges": None}, "degree_edges: expected a list, got NoneType"),
        ({"degree_edges": ["x" * 10**6]}, "degree edges: expected positive integers"),
        ({"granularity": 3}, "granularity: expected a text, got int"),
        ({"fingerprint": [["a", 1]]}, "fingerprint: expected an object, got list"),
        ({"source": "mine"}, "source: expected an object, got str"),
        ({"version": "1" * 10**6}, "expected version 1, got '1111"),
        ({"schema": "x" * 10**6}, "expected schema"),
    ],
)
def test_what_is_not_valid_is_named(change, message, tmp_path):
    ASSIGNMENT.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content | change))
    with pytest.raises(PackingError, match=message) as error:
        load_assignment(tmp_path / "a.json")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"accuracy": float("nan")}},
        {"fingerprint": {"weights": [float("inf")]}},
        {"source": {"note": "\ud800"}},
        {"source": {"model": object()}},
        {"source": {"note": "x" * (1 << 24)}},
        {"degree_edges": (8, 4)},
        {"degree_edges": (4.5,)},
        {"degree_edges": ()},  # of widths for two buckets
        {"granularity": None},
    ],
)
def test_what_could_not_be_read_again_is_not_saved(change, tmp_path):
    with pytest.raises(ValueError, match="assignment: expected what JSON can hold") as error:
        replace(ASSIGNMENT, **change).save(tmp_path / "a.json")
    assert len(str(error.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path):
    ASSIGNMENT.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    del content["quantizer"]
    for stored, message in {
        b"\xff\xfe": "expected JSON",
        b"{": "expected JSON",
        b"[" * 100_000: "expected JSON",
        b"\xef\xbb\xbf{}": "expected JSON",
        b'{"schema": 1, "schema": 2}': "a name stands twice",
        b'{"schema": "\\ud800"}': "expected JSON",
        json.dumps(content | {"degree_edges": [1e999]}).encode(): "Infinity is no number",
        b'{"schema": 1e999}': "1e999 is no number",
        b" " * (1 << 24 | 1): "expected an assignment, got a file of over",
        b"[]": "expected schema",
        json.dumps(content).encode(): "expected a field 'quantizer'",
    }.items():
        (tmp_path / "b.json").write_bytes(stored)
        with pytest.raises(PackingError, match=message):
            load_assignment(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="found none"):
        load_assignment(tmp_path / "none.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "widths.json"
    ASSIGNMENT.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", _full_disk)
    with pytest.raises(ValueError, match=r"widths.json: cannot write it \(No space left"):
        replace(ASSIGNMENT, granularity="lwq").save(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["widths.json"]


def _full_disk(*_):
    raise OSError(28, "No space left on device")
