import signal
import socket
import subprocess
import sys

import optuna
import pytest

from sgquant_optuna.storage import open_storage


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


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
