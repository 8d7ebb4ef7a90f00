import sys

import pytest

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage, serve_storage


def test_without_grpc_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    for call in (lambda: open_storage("grpc://127.0.0.1:1"), serve_storage):
        with pytest.raises(StorageError, match=r"pip install 'sgquant-optuna\[grpc\]'"):
            call()


def test_only_databases_are_served(tmp_path):
    with pytest.raises(ValueError, match="expected a database"):
        serve_storage(f"journal:///{tmp_path}/s.log")
