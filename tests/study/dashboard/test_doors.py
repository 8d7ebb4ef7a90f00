import base64
import io
import json
import re
import urllib.parse

import optuna
import pytest

from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.study.dashboard.doors import Doors
from sgquant_optuna.study.dashboard.server import dashboard_app
from tests.hand_made import new_study

HOST = "127.0.0.1:8080"


@pytest.fixture
def study():
    return new_study(optuna.storages.InMemoryStorage())


@pytest.fixture
def inner(study, tmp_path):
    store = open_artifacts(tmp_path / "files", storage_url=None)
    return dashboard_app(study._storage, store)


def ask(app, path="/api/studies", method="GET", body=b"", more=None, **headers):
    """Return status, headers and body of an answer."""
    told = {}
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": urllib.parse.unquote(path, "latin-1"),
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "CONTENT_TYPE": "application/json",
        "HTTP_ACCEPT_ENCODING": "identity",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        **{f"HTTP_{name.upper()}": value for name, value in {"host": HOST, **headers}.items()},
        **(more or {}),
    }

    def start_response(status, headers, exc_info=None):
        told.update(status=int(status.split()[0]), headers={k.lower(): v for k, v in headers})

    parts = app(environ, start_response)
    answer = b"".join(parts)
    getattr(parts, "close", lambda: None)()  # as a server does
    return told["status"], told["headers"], answer


def is_answered(host, bound="127.0.0.1", allow=()):
    app = Doors(
        lambda environ, start: start("200 OK", []) or [b"in"], host=bound, allow_hosts=allow
    )
    status, _, body = ask(app, host=host)
    assert (status, body == b"in") in ((200, True), (403, False))
    return status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:8080", "localhost.", "127.0.0.1", "127.0.0.1:9000"),
        *("127.9.8.7:1", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]:8080"),
    ],
)
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::", "gpu7"])
def test_the_names_of_this_machine_are_answered(host, bound):
    assert is_answered(host, bound)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("localhost@evil.example", "evil.example,localhost", "", ":8080", "[evil.example]"),
        *("localhost:80:80", "localhost/x", "[::1", "localhost:evil", "127.0.0.256", "evil\xe9"),
        *("0x7f.evil", "..", "localhost\n", "a" * 300),
    ],
)
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::", "", "gpu7"])
def test_a_name_of_a_stranger_is_refused(host, bound):
    assert not is_answered(host, bound)


@pytest.mark.parametrize("host", ["192.168.1.5", "192.168.1.5:8080", "[fd00::7]:8080", "8.8.8.8"])
def test_addresses_are_answered_where_all_of_them_are_listened_on(host):
    assert all(is_answered(host, bound) for bound in ("0.0.0.0", "::", "[::]", "", "0:0::0"))
    assert not is_answered(host) and not is_answered(host, "gpu7")


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("gpu7.example.org", "GPU7.example.org.:8080"),
        ("my_box", "my_box"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("192.168.1.5", "192.168.1.5:8080"),
        ("fd00::0:7", "[FD00::7]:8080"),
        ("[fd00::7]", "[fd00::7]"),
    ],
)
def test_the_bound_name_and_each_allowed_one_are_answered(name, host):
    assert not is_answered(host)
    assert is_answered(host, bound=name)
    assert is_answered(host, allow=("other", name))
    assert not is_answered(f"sub.{host}", allow=(name,))


@pytest.mark.parametrize(
    "name", ["http://gpu7", "gpu7:8080", "gpu7/", "*", "*.example", "", "a..b"]
)
def test_an_allowed_name_that_is_none_is_an_error_that_says_what_to_write(name):
    with pytest.raises(ValueError, match=r"--allow-host: expected a name .*leave out http://"):
        Doors(lambda environ, start: [], host="127.0.0.1", allow_hosts=[name])


def test_a_refusal_is_one_plain_line_that_says_what_to_do(inner):
    app = Doors(inner, host="127.0.0.1")
    status, headers, body = ask(app, host="evil.example:8080")
    assert status == 403 and headers["content-type"] == "text/plain; charset=utf-8"
    assert body.decode() == (
        "The dashboard takes no requests for the host evil.example: open it as localhost, or "
        "start it with --allow-host evil.example if that is a name of its machine.\n"
    )
    assert ask(app, method="HEAD", host="evil.example")[::2] == (403, b"")
    assert b"without a valid Host" in ask(app, host="<b>")[2]


@pytest.fixture
def app(inner):
    return Doors(inner, host="127.0.0.1", allow_hosts=["gpu7"])


def names(study):
    return optuna.get_all_study_names(study._storage)


@pytest.mark.parametrize(
    "headers",
    [
        *({}, {"sec_fetch_site": "none"}, {"sec_fetch_site": "same-origin"}),
        {"origin": f"http://{HOST}", "sec_fetch_site": "same-origin"},
        {"origin": "http://localhost:9000", "host": "LOCALHOST:9000"},
        {"origin": "https://gpu7", "host": "gpu7", "sec_fetch_site": "same-origin"},
    ],
)
def test_the_own_page_and_programs_may_write(app, study, headers):
    path = f"/api/studies/{study._study_id}"
    assert ask(app, path, "DELETE", **headers)[0] == 204
    assert names(study) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://evil.example:8080", "sec_fetch_site": "same-origin"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://localhost:8080"},
        {"origin": f"http://{HOST}.evil.example"},
        {"origin": f"http://{HOST}", "sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "of a later browser"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "delete", "NEW"])
def test_a_page_of_another_site_may_not_write(app, study, headers, method):
    path = f"/api/studies/{study._study_id}"
    status, told, body = ask(app, path, method, **headers)
    assert status == 403 and told["content-type"] == "application/json"
    assert "no writes from pages of other sites" in json.loads(body)["reason"]
    assert names(study) == [study.study_name]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_changes_nothing_is_left_to_the_browser(app, method):
    headers = {"origin": "http://evil.example", "sec_fetch_site": "cross-site"}
    assert ask(app, method=method, **headers)[0] in (200, 405)


def upload(app, study, filename, trial=None, content=b"<script>ran()</script>"):
    """Store a file as the page does, and return its address."""
    below = f"{study._study_id}" if trial is None else f"{study._study_id}/{trial._trial_id}"
    uri = "data:text/plain;base64," + base64.b64encode(content).decode()
    sent = json.dumps({"file": uri, "filename": filename}).encode()
    status, _, body = ask(app, f"/api/artifacts/{below}", "POST", sent)
    assert status == 201
    return f"/artifacts/{below}/{json.loads(body)['artifact_id']}"


def is_inline(headers):
    assert headers["content-security-policy"] == "sandbox"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers.get("content-disposition", "attachment") == "attachment"
    return "content-disposition" not in headers


FILES = {
    **dict.fromkeys(("a.png", "A.PNG", "a.jpg", "a.jpeg", "a.gif"), True),
    **dict.fromkeys(("a.svg", "a.html", "a.xhtml", "a.xml", "a.js", "a.pdf", "a.txt"), False),
    **dict.fromkeys(("a.svgz", "a.mp4", "a.csv", "best_model.sgq", "none", "a.png.html"), False),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("of_trial", [False, True])
@pytest.mark.parametrize("filename", FILES)
def test_only_pictures_of_pixels_are_shown_and_no_file_runs(
    app, study, filename, of_trial, method
):
    path = upload(app, study, filename, study.ask() if of_trial else None)
    # Bytes that are no UTF-8 are dropped before the dashboard looks at a path.
    for spelled in (path, f"{path}/", path.replace("/art", "/%FFart"), f"%FE{path}%FF"):
        status, headers, body = ask(app, spelled, method)
        assert status == 200 and body == (b"<script>ran()</script>" if method == "GET" else b"")
        assert is_inline(headers) == FILES[filename]


@pytest.mark.parametrize(
    ("mimetype", "inline"),
    [
        ("image/webp", True),
        *((kind, False) for kind in ("image/svg+xml", "text/html", "image/png, text/html", "*/*")),
    ],
)
def test_the_type_that_is_told_decides(app, study, mimetype, inline):
    path = upload(app, study, "a.png")
    artifact_id = path.rpartition("/")[2]
    described = {"artifact_id": artifact_id, "filename": "a.png", "mimetype": mimetype}
    study._storage.set_study_system_attr(
        study._study_id, f"artifacts:{artifact_id}", json.dumps(described)
    )
    _, headers, _ = ask(app, path)
    assert headers["content-type"] == mimetype and is_inline(headers) == inline


def test_a_missing_file_is_told_in_the_browser(app, study):
    status, headers, _ = ask(app, f"/artifacts/{study._study_id}/00000000")
    assert status == 404 and is_inline(headers)


def test_no_page_of_another_site_may_read_or_frame_an_answer(app, study):
    number = study._study_id
    paths = [
        *("/", "/dashboard", "/api/meta", "/api/studies", f"/api/studies/{number}", "/none"),
        *(f"/csv/{number}", upload(app, study, "a.png"), "/artifacts/1/2/3", "/favicon.ico"),
    ]
    for path in paths:
        for method in ("GET", "HEAD", "OPTIONS"):
            _, headers, _ = ask(app, path, method, origin="http://evil.example")
            assert "access-control-allow-origin" not in headers
            assert headers["x-frame-options"] == "SAMEORIGIN"
            own_page = "content-disposition" not in headers or path.startswith(("/csv", "/art"))
            assert own_page


def routes(inner):
    """Return method and an address of each route of the dashboard."""
    return [(route.method, re.sub("<[^>]*int>", "1", route.rule)) for route in inner.routes]


def test_a_read_only_dashboard_refuses_every_write_and_answers_every_read(inner, study):
    app = Doors(inner, host="127.0.0.1", read_only=True)
    path = upload(inner, study, "a.png")
    attrs = study._storage.get_study_system_attrs(study._study_id)
    writes = [(method, rule) for method, rule in routes(inner) if method != "GET"]
    assert len(writes) > 10
    for method, rule in writes:
        status, _, body = ask(app, rule, method, b"{}")
        assert status == 403 and b"read-only: to change a study, start it without" in body, rule
    number = study._study_id
    for read in ("/dashboard", "/api/studies", f"/api/studies/{number}", f"/csv/{number}", path):
        assert ask(app, read)[0] == 200, read
    assert names(study) == [study.study_name]
    assert study._storage.get_study_system_attrs(number) == attrs


def test_behind_the_doors_is_the_dashboard(inner, study):
    status, _, body = ask(Doors(inner, host="127.0.0.1"))
    (told,) = json.loads(body)["study_summaries"]
    assert status == 200 and told["study_name"] == study.study_name
