import io
import sys
from pathlib import Path

import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from sgquant_optuna.exceptions import ArtifactError
from sgquant_optuna.storage.artifacts import FolderArtifactStore, open_artifacts


@pytest.mark.parametrize(
    ("storage_url", "folder"),
    [
        (None, "storage/artifacts"),
        ("runs/s.db", "runs/artifacts"),
        (Path("/data/s.db"), "/data/artifacts"),
        ("sqlite:///runs/s.db", "runs/artifacts"),
        ("sqlite:////data/s.db?timeout=3", "/data/artifacts"),
        ("journal:////data/s.log", "/data/artifacts"),
        ("postgresql+psycopg://me@host/studies", "storage/artifacts"),
        ("grpc://host:13000", "storage/artifacts"),
    ],
)
def test_the_default_folder_is_next_to_the_study_file(storage_url, folder):
    store = open_artifacts(storage_url=storage_url)
    assert isinstance(store, FolderArtifactStore)
    assert store.folder == Path(folder)


def test_the_environment_and_an_argument_go_before_the_default(monkeypatch):
    monkeypatch.setenv("SGQUANT_STORAGE", "sqlite:///elsewhere/s.db")
    assert open_artifacts(storage_url=None).folder == Path("elsewhere/artifacts")
    monkeypatch.setenv("SGQUANT_ARTIFACTS", "shared")
    assert open_artifacts(storage_url="runs/s.db").folder == Path("shared")
    assert open_artifacts("mine", storage_url="runs/s.db").folder == Path("mine")


def test_what_is_written_is_read_again_and_opening_makes_no_folder(tmp_path):
    store = open_artifacts("shared", storage_url=None)
    assert not (tmp_path / "shared").exists()
    store.write("weights-1", io.BytesIO(b"abc"))
    with store.open_reader("weights-1") as reader:
        assert reader.read() == b"abc"
    store.remove("weights-1")
    with pytest.raises(ArtifactNotFound):
        store.open_reader("weights-1")


def test_an_interrupted_write_leaves_the_old_file_and_no_part(tmp_path):
    class Breaks(io.BytesIO):
        def read(self, size=-1):
            raise KeyboardInterrupt

    store = open_artifacts(tmp_path, storage_url=None)
    store.write("a", io.BytesIO(b"old"))
    with pytest.raises(KeyboardInterrupt):
        store.write("a", Breaks())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a/b", ".part", "a\n"])
def test_a_name_that_leaves_the_folder_is_refused(name, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    store = open_artifacts(tmp_path / "store", storage_url=None)
    for use in (store.open_reader, store.remove, lambda n: store.write(n, io.BytesIO())):
        with pytest.raises(ValueError, match="plain name"):
            use(name)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("ftp://host/x", "expected a folder, s3://BUCKET or gs://BUCKET, got ftp://host/x"),
        ("s3://bucket/prefix", "expected a folder, s3://BUCKET"),
        ("s3://", "expected a folder, s3://BUCKET"),
    ],
)
def test_another_form_is_refused(where, message):
    with pytest.raises(ArtifactError, match=message):
        open_artifacts(where, storage_url=None)


@pytest.mark.parametrize(
    ("where", "module", "package"),
    [("s3://bucket", "boto3", "boto3"), ("gs://bucket", "google.cloud", "google-cloud-storage")],
)
def test_a_missing_package_is_named(where, module, package):
    if module in sys.modules:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ArtifactError, match=f"pip install {package}"):
        open_artifacts(where, storage_url=None)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="expected a folder, got a file"):
        open_artifacts(tmp_path / "file", storage_url=None)
    store = open_artifacts(tmp_path / "file" / "below", storage_url=None)
    with pytest.raises(ArtifactError, match="cannot write"):
        store.write("a", io.BytesIO(b"x"))
