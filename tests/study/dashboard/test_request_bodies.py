import base64
import http.client
import io
import json
import tracemalloc

import optuna
import pytest

from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.study.dashboard import request_bodies
from sgquant_optuna.study.dashboard.doors import Doors
from sgquant_optuna.study.dashboard.request_bodies import RequestBodies
from sgquant_optuna.study.dashboard.server import dashboard_app
from sgquant_optuna.study.dashboard.web_server import ClientLimits
from tests.hand_made import new_study
from tests.study.dashboard.test_doors import ask
from tests.study.dashboard.test_web_server import serving

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def study():
    return new_study(optuna.storages.InMemoryStorage())


@pytest.fixture
def store(tmp_path):
    return open_artifacts(tmp_path / "files", storage_url=None)


@pytest.fixture
def app(study, store):
    return RequestBodies(dashboard_app(study._storage, store), max_upload=400_000, max_json=2000)


def as_uri(content, kind="text/plain"):
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def upload(app, study, body):
    status, _, answer = ask(app, f"/api/artifacts/{study._study_id}", "POST", body)
    return status, json.loads(answer)


def stored(store, told):
    with store.open_reader(told["artifact_id"]) as file:
        return file.read()


def files(store):
    return sorted(store.folder.iterdir()) if store.folder.exists() else []


@pytest.mark.parametrize("content", [b"", b"a", b"ab", b"abc", CONTENT, CONTENT[:-1]], ids=len)
@pytest.mark.parametrize("first", ["file", "filename"])
@pytest.mark.parametrize("gap", ["", " ", "\n\t"])
def test_a_file_is_stored_as_it_was_sent(app, study, store, content, first, gap):
    fields = {"file": as_uri(content), "filename": 'a "file": "data:,x.png'}
    if first == "filename":
        fields = dict(reversed(fields.items()))
    body = json.dumps(fields, separators=(f",{gap}", f"{gap}:{gap}")).encode()
    status, told = upload(app, study, body)
    assert status == 201
    assert stored(store, told) == content
    (described,) = told["artifacts"]
    assert described["filename"] == fields["filename"] and described["mimetype"] == "image/png"


def test_a_file_of_a_trial_is_stored_while_the_trial_runs(app, study, store):
    trial = study.ask()
    body = json.dumps({"file": as_uri(b"abc"), "filename": "a"}).encode()
    path = f"/api/artifacts/{study._study_id}/{trial._trial_id}"
    assert ask(app, path, "POST", body)[0] == 201
    study.tell(trial, 1.0)
    assert ask(app, path, "POST", body)[0] == 400
    (file,) = files(store)
    assert file.read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{}", 400, "specify the 'file' key"),
        (b'{"file": ', 400, ""),
        (b'{"x": "' + b"a" * 70_000, 400, "data URI"),
        (b'{"file": "data:,abc"}', 400, "end is missing"),
        (b'{"file": "data:,ab=c"}', 400, "not base64"),
        (b'{"file": "data:,a$bc"}', 400, "not base64"),
        (b'{"file": "data:,a\\u0062cd"}', 400, "not base64"),
        (b'{"file": "data:,abcd', 400, "inside its file"),
        (b'{"file": "data:,abcd", "filename": "' + b"a" * 70_000 + b'"}', 413, "at most"),
        (b'{"x": {"file": "data:,abcd"}}', 400, "specify the 'file' key"),
    ],
)
def test_an_upload_of_another_form_is_refused_in_one_line(app, study, store, body, status, reason):
    found, told = upload(app, study, body)
    assert found == status and reason in told["reason"] and "\n" not in told["reason"]
    assert files(store) == []


class Unread(io.RawIOBase):
    def read(self, size=-1):
        raise AssertionError("the body was read")


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/api/artifacts/1", "400001", 413),
        ("/api/artifacts/1/2", "9" * 30, 413),
        ("/api/artifacts/1/", "400001", 413),
        ("/api/studies", "2001", 413),
        ("/artifacts/1", "400000", 413),
        *(("/api/studies", length, 400) for length in ("-1", "+5", "1_0", "a", "\xb2", "0x10")),
    ],
)
def test_what_the_head_says_is_refused_before_the_body_is_read(app, path, length, status):
    found, _, body = ask(
        app, path, "POST", more={"CONTENT_LENGTH": length, "wsgi.input": Unread()}
    )
    assert found == status and len(body.splitlines()) == 1


def chunked(*parts):
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def send(app, path, body):
    return ask(app, path, "POST", body, transfer_encoding="Chunked", more={"CONTENT_LENGTH": ""})


def test_a_chunked_body_is_taken(app, study, store):
    body = json.dumps({"file": as_uri(CONTENT), "filename": "a"}).encode()
    parts = (body[start : start + 1000] for start in range(0, len(body), 1000))
    assert send(app, f"/api/artifacts/{study._study_id}", chunked(*parts))[0] == 201
    (file,) = files(store)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (chunked(b"x" * 1500, b"x" * 501), 413),
        (b"fffffffffffffff\r\n", 413),
        (chunked(b"{}")[:-5], 400),
        *((size + b"\r\n{}\r\n0\r\n\r\n", 400) for size in (b"", b"-2", b"0x2", b"2_", b"f" * 16)),
        (b"2\r\n{}x", 400),
        (b"4\r\n{}", 400),
    ],
)
def test_a_chunked_body_that_is_broken_or_too_long_is_refused(app, body, status):
    assert send(app, "/api/studies", body)[0] == status


def test_another_coding_is_refused(app):
    assert ask(app, "/api/studies", "POST", b"x", transfer_encoding="gzip, chunked")[0] == 400


def test_other_requests_get_their_bodies(app, study):
    sent = json.dumps({"study_name": "another", "directions": ["minimize"]}).encode()
    assert send(app, "/api/studies", chunked(sent[:9], sent[9:]))[0] == 201
    assert "another" in optuna.get_all_study_names(study._storage)


def test_uploads_beyond_those_at_once_are_asked_to_come_again(app, study, monkeypatch):
    monkeypatch.setattr(request_bodies, "_UPLOAD_WAIT", 0.01)
    while app._uploads.acquire(blocking=False):
        pass
    body = json.dumps({"file": as_uri(b"abc"), "filename": "a"}).encode()
    assert upload(app, study, body)[0] == 503
    app._uploads.release()
    assert [upload(app, study, body)[0] for _ in range(20)] == [201] * 20


def blocks(count):
    """Yield JSON with a file of 48 kB for each block."""
    yield b'{"file": "data:;base64,'
    for _ in range(count):
        yield b"AAAA" * 16_000
    yield b'", "filename": "zeros"}'


def test_a_large_file_takes_little_memory(study, store):
    app = Doors(RequestBodies(dashboard_app(study._storage, store)), host="127.0.0.1")
    count = 1000
    length = sum(map(len, blocks(count)))
    with serving(app, ClientLimits()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        tracemalloc.start()
        try:
            connection.request(
                "POST",
                f"/api/artifacts/{study._study_id}",
                blocks(count),
                {"Content-Type": "application/json", "Content-Length": str(length)},
            )
            status = connection.getresponse().status
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            connection.close()
    (file,) = files(store)
    assert status == 201 and file.stat().st_size == 48_000 * count
    assert peak < 4 << 20
