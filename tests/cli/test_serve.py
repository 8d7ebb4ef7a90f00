import signal
import subprocess
import sys

import optuna
import pytest

from sgquant_optuna.cli import main
from sgquant_optuna.storage import open_storage
from tests.databases import Proxy, free_port


@pytest.mark.slow
def test_a_study_is_run_through_the_proxy_and_is_in_the_database(tmp_path):
    pytest.importorskip("grpc")
    port, url = free_port(), f"sqlite:///{tmp_path}/study.db"
    command = [sys.executable, "-m", "sgquant_optuna", "serve", "--storage", url]
    server = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        proxy = open_storage(f"grpc://127.0.0.1:{port}")
        study = optuna.create_study(storage=proxy, study_name="far")
        study.optimize(lambda trial: trial.suggest_int("bits", 1, 8), n_trials=2)
        proxy.close()
    finally:
        server.terminate()
        assert server.wait(30) == -signal.SIGTERM
    assert len(optuna.load_study(study_name="far", storage=open_storage(url)).trials) == 2


def test_a_second_server_on_one_port_is_refused_and_does_not_say_that_it_serves(tmp_path, capsys):
    pytest.importorskip("grpc")
    proxy = Proxy(tmp_path / "s.db")
    proxy.start()
    try:
        with pytest.raises(SystemExit) as stop:
            main(["serve", "--storage", str(tmp_path / "s.db"), "--port", str(proxy.port)])
    finally:
        proxy.kill()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert err.startswith("error: serve: cannot listen on 127.0.0.1:")
    assert err.count("\n") == 1
