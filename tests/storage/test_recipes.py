"""The files of ``storage/`` that people run."""

import os
import re
import subprocess
import uuid
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
import yaml

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.artifacts import open_artifacts
from tests.databases import BACKENDS, fresh_database

FOLDER = Path(__file__).parents[2] / "storage"


def test_compose_listens_on_this_machine_alone():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert set(services) == {"postgresql", "mariadb", "proxy", "dashboard"}
    ports = [port for service in services.values() for port in service["ports"]]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert "password" not in re.sub(r"\$\{\w+\}|\w+_PASSWORD", "", str(services)).lower()


def test_the_dashboard_can_draw_plots_and_keep_files():
    dashboard = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["dashboard"]
    assert "/source[postgresql,plots]" in dashboard["command"]
    assert {"..:/source:ro", "packages:/packages"} < set(dashboard["volumes"])
    # What the dashboard uses in its working directory, and processes of this machine in theirs.
    store = open_artifacts(storage_url=dashboard["environment"]["SGQUANT_STORAGE"])
    assert store.folder == Path("storage/artifacts")
    inside = f"{dashboard['working_dir']}/{store.folder}"
    assert f"./artifacts:{inside}" in dashboard["volumes"]


def test_the_job_runs_a_worker_with_its_url_from_a_secret():
    job = yaml.safe_load((FOLDER / "kubernetes-job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["sgquant", "worker"]
    storage = container["env"][0]
    assert storage["name"] == "SGQUANT_STORAGE" and "secretKeyRef" in storage["valueFrom"]


def test_the_array_runs_a_worker(tmp_path):
    script = FOLDER / "slurm-array.sh"
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("srun", "sleep"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "4"}
    command = ["bash", str(script), "it's mine"]
    without = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert without.returncode != 0 and "SGQUANT_STORAGE: set it" in without.stderr
    environment["SGQUANT_STORAGE"] = "journal:////shared/s.log"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "--ntasks=1 sgquant worker it's mine --root data --n-jobs 4 --grace 100"
    )


def test_the_array_keeps_the_url_out_of_the_process_list(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$SGQUANT_STORAGE"; echo "$@"\n')
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("srun", "sleep"):
        (tmp_path / name).chmod(0o755)
    url = "postgresql://me:secret@host/studies"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SGQUANT_STORAGE": url}
    command = ["bash", str(FOLDER / "slurm-array.sh"), "study"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    inherited, arguments = done.stdout.splitlines()
    assert inherited == url and "secret" not in arguments


@pytest.fixture
def roles(tmp_path):
    """An empty database, and the roles of the file under names that are this test's own."""
    prefix = f"test_{uuid.uuid4().hex[:8]}_"
    text = (FOLDER / "postgresql-roles.sql").read_text()
    (tmp_path / "roles.sql").write_text(text.replace("sgquant_", prefix))
    with fresh_database("postgresql", tmp_path) as url:
        admin = sa.make_url(url)
        command = ["psql", "-q", "-h", admin.host, "-p", str(admin.port), "-U", admin.username]
        command += [admin.database, "-f", str(tmp_path / "roles.sql")]
        for name in ("owner", "worker", "reader"):
            command += ["-v", f"{name}_password='{name} & co'"]
        for _ in range(2):  # it may be run again
            subprocess.run(command, check=True, capture_output=True)

        def login(role: str) -> str:
            named = admin.set(username=f"{prefix}{role}", password=f"{role} & co")
            return named.render_as_string(hide_password=False)

        yield login
    engine = sa.create_engine(os.environ["TEST_POSTGRESQL_URL"], poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        for name in ("owner", "worker", "reader"):
            connection.execute(sa.text(f"DROP ROLE {prefix}{name}"))


@pytest.mark.skipif("postgresql" not in BACKENDS, reason="needs TEST_POSTGRESQL_URL")
def test_a_worker_may_run_a_study_and_a_reader_may_only_read(roles):
    open_storage(roles("owner"))
    study = optuna.create_study(storage=open_storage(roles("worker")), study_name="s")
    study.optimize(lambda trial: trial.suggest_categorical("x", [1, 2]), n_trials=2)
    assert len(study.trials) == 2

    read = optuna.load_study(study_name="s", storage=open_storage(roles("reader")))
    assert len(read.trials) == 2
    with pytest.raises(optuna.exceptions.StorageInternalError) as refused:
        read.set_user_attr("x", 1)
    assert "permission denied" in str(refused.value.__cause__)
    engine = sa.create_engine(roles("worker"), poolclass=sa.pool.NullPool)
    with engine.begin() as connection, pytest.raises(sa.exc.ProgrammingError, match="denied"):
        connection.execute(sa.text("CREATE TABLE mine (x int)"))
