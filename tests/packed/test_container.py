import pytest
import torch

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import container
from sgquant_optuna.packed.container import read_checksum, read_container, write_container

FIELDS, TENSORS = {"name": "x"}, {"values": torch.arange(3)}


def test_what_was_written_is_read(tmp_path):
    write_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    fields, tensors = read_container(tmp_path / "x", "kind")
    assert fields == FIELDS
    assert torch.equal(tensors["values"], TENSORS["values"])


def test_a_file_of_version_1_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "VERSION", 1)
    write_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    monkeypatch.undo()
    with pytest.raises(PackingError, match=r"/x: expected version 2, got 1; use the version of"):
        read_container(tmp_path / "x", "kind")


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    write_container(tmp_path / "x", "features", FIELDS, TENSORS)
    with pytest.raises(PackingError, match=r"/x: expected model, got 'features'"):
        read_container(tmp_path / "x", "model")


def test_the_checksum_tells_files_apart(tmp_path):
    for name, tensors in (("x", TENSORS), ("same", TENSORS), ("y", {"values": torch.ones(3)})):
        write_container(tmp_path / name, "kind", FIELDS, tensors)
    assert read_checksum(tmp_path / "x") == read_checksum(tmp_path / "same")
    assert read_checksum(tmp_path / "x") != read_checksum(tmp_path / "y")
