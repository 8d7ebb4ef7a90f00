import os

import pytest
import torch
from safetensors import SafetensorError

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import container
from sgquant_optuna.packed.container import (
    read_checksum,
    read_container,
    replace_container,
    write_container,
)

FIELDS, TENSORS = {"name": "x"}, {"values": torch.arange(3)}


def test_what_was_written_is_read(tmp_path):
    write_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    fields, tensors = read_container(tmp_path / "x", "kind")
    assert fields == FIELDS
    assert torch.equal(tensors["values"], TENSORS["values"])


def test_a_file_of_an_older_version_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "VERSION", 2)
    write_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    monkeypatch.undo()
    with pytest.raises(PackingError, match=r"/x: expected version 3, got 2; use the version of"):
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


def test_a_file_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        replace_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    replace_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    before = (tmp_path / "x").read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"a part")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(container, "save_file", fail)
    with pytest.raises(ValueError, match=r"/x: cannot write it \(I/O error: No space left"):
        replace_container(tmp_path / "x", "kind", FIELDS, TENSORS)
    assert (tmp_path / "x").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize(("path", "kind"), [("/dev/null", "a device"), (".", "a folder")])
def test_nothing_but_a_regular_file_is_replaced(path, kind):
    with pytest.raises(ValueError, match=f"{path}: expected a file to write, got {kind}"):
        replace_container(path, "kind", FIELDS, TENSORS)
