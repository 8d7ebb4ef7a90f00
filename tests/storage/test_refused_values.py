"""A value that its column cannot hold is told at once, by name."""

import time

import optuna
import pytest

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage, outage, write_together
from tests.databases import Proxy

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


def test_a_value_or_a_name_that_is_too_long_is_refused_at_once_by_name(storage):
    server = storage.engine.name
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    long = {"a": "x" * 70_000} if server == "mysql" else {"n" * 600: 1}
    (name, value) = next(iter(long.items()))

    def together():
        with write_together():
            trial.set_user_attr("short", 1)
            trial.set_user_attr(name, value)

    def enqueue():
        queued = {f"a_layer_with_a_long_name_{i:039}": i for i in range(2000)}
        study.enqueue_trial(queued, user_attrs={} if server == "mysql" else long)

    began = time.monotonic()
    for write in (
        lambda: trial.set_user_attr(name, value),
        lambda: study.set_user_attr(name, value),
        lambda: storage.set_trial_system_attr(trial._trial_id, name, value),
        together,
        enqueue,
    ):
        if server == "sqlite":  # holds any length
            write()
            continue
        with pytest.raises(StorageError, match="the database refuses it") as told:
            write()
        wanted = "fixed_params" if server == "mysql" and write is enqueue else name[:80]
        assert f"attribute '{wanted}" in str(told.value)
        assert outage(told.value) is None
    assert time.monotonic() - began < 2  # no try was repeated
    assert len(study.trials) == (2 if server == "sqlite" else 1)


def test_a_refused_value_is_told_at_once_through_a_proxy(storage):
    pytest.importorskip("grpc")
    proxy = Proxy(storage.engine.url.render_as_string(hide_password=False))
    proxy.start()
    try:
        proxied = open_storage(proxy.url)
        trial = optuna.create_study(storage=proxied).ask()
        name, value = ("a", "x" * 70_000) if storage.engine.name == "mysql" else ("n" * 600, 1)
        began = time.monotonic()
        if storage.engine.name == "sqlite":  # holds any length
            trial.set_user_attr(name, value)
        else:
            refused = "attribute '[an]+.*the database refuses"
            with pytest.raises(StorageError, match=refused) as told:
                trial.set_user_attr(name, value)
            assert outage(told.value) is None
        assert time.monotonic() - began < 2
        trial.set_user_attr("short", 1)  # the proxy serves on
        proxied.close()
    finally:
        proxy.kill()
