"""Who may ask the dashboard for what: it has no login, and browsers open pages of strangers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from wsgiref.headers import Headers

from sgquant_optuna.study.dashboard.refusal import refuse

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_HOST = re.compile(
    r"(\[[^\[\]]*\]|[^:\[\]]*)(?::\d*)?"
)  # RFC 9110, section 7.2: a port may follow
_FORBIDDEN = "403 Forbidden"
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}  # RFC 9110, section 9.2.1, without TRACE
_FILES = "/artifacts/"  # where optuna-dashboard serves them
_PICTURES = {"image/png", "image/jpeg", "image/gif", "image/webp"}  # no SVG, which holds scripts
_NAME = re.compile(r"\w([\w-]*\w)?(\.\w([\w-]*\w)?)*", re.ASCII)


class Doors:
    """A WSGI application that keeps pages of strangers away from another one.

    A page of a stranger can point its own name at this machine (DNS rebinding). A browser then
    takes the dashboard for a part of that page, but still sends the name as ``Host``; so only own
    names are answered. Without that, the page cannot read an answer, but it can send a write;
    a browser then tells where it comes from (``Origin``, ``Sec-Fetch-Site``). A program that is no
    browser sends neither and may write.

    Args:
        app:
            Application behind the doors.
        host:
            Address or name that the server listens on.
        allow_hosts:
            Further names or addresses of this machine.
        read_only:
            Whether to refuse every write.

    Raises:
        ValueError:
            If a name of ``allow_hosts`` is no name.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        host: str,
        allow_hosts: Sequence[str] = (),
        read_only: bool = False,
    ) -> None:
        self._app = app
        self._read_only = read_only
        own = _normal(host)
        self._takes_addresses = not host or _is_address(own, "is_unspecified")
        self._names = {"localhost", own, *map(_checked, allow_hosts)} - {None}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse it in one line."""
        host = _asked_host(environ)
        if not self._is_own(host):
            named = "without a valid Host" if host is None else f"for the host {host}"
            line = (
                f"The dashboard takes no requests {named}: open it as localhost, or start it with "
                f"--allow-host {host or 'NAME'} if that is a name of its machine."
            )
            return refuse(environ, start_response, _FORBIDDEN, line)
        if environ["REQUEST_METHOD"] not in _SAFE_METHODS:
            refusal = self._why_no_write(environ)
            if refusal is not None:
                return refuse(environ, start_response, _FORBIDDEN, refusal)
        return self._app(environ, _closed(environ, start_response))

    def _why_no_write(self, environ: WSGIEnvironment) -> str | None:
        if _is_of_another_site(environ):
            return (
                "The dashboard takes no writes from pages of other sites: make the change on its "
                "own page. A proxy in front has to pass Host and Origin on as they come."
            )
        if self._read_only:
            return "This dashboard is read-only: to change a study, start it without --read-only."
        return None

    def _is_own(self, host: str | None) -> bool:
        if host in self._names or _is_address(host, "is_loopback"):
            return host is not None
        # A name can be pointed at another machine, an address cannot.
        return self._takes_addresses and _is_address(host)


def _checked(name: str) -> str:
    normal = _normal(name)
    if normal is None:
        raise ValueError(
            f"--allow-host: expected a name such as gpu7.example.org, got {name!r}; leave out "
            "http://, port and path"
        )
    return normal


def _asked_host(environ: WSGIEnvironment) -> str | None:
    match = _HOST.fullmatch(environ.get("HTTP_HOST", ""))
    return None if match is None else _normal(match[1])


def _is_of_another_site(environ: WSGIEnvironment) -> bool:
    # "none" is a request that no page made.
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        return True
    origin = environ.get("HTTP_ORIGIN")
    # Behind a proxy that encrypts, the page is of https and the request is not.
    own = (f"{scheme}://{environ['HTTP_HOST'].lower()}" for scheme in ("http", "https"))
    return origin is not None and origin.lower() not in own


def _normal(host: str) -> str | None:
    """Return a name or an address in the one spelling that is compared, if it is one."""
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    try:
        name = host.removesuffix(".").lower().encode("idna").decode()
    except UnicodeError:  # an empty or a long part
        return None
    return name if _NAME.fullmatch(name) else None


def _is_address(host: str | None, kind: str | None = None) -> bool:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return kind is None or bool(getattr(address, kind))


def _closed(environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
    """Return a function that starts an answer of which no stranger gets or runs a part."""
    # As bottle decodes it: without the bytes that are no UTF-8.
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "ignore")
    is_file = path.startswith(_FILES)

    def start(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        sent = Headers(headers)
        del sent["Access-Control-Allow-Origin"]  # optuna-dashboard lets any page read files
        sent["X-Frame-Options"] = "SAMEORIGIN"  # a page around it could steal clicks
        if is_file:
            sent["Content-Security-Policy"] = "sandbox"
            sent["X-Content-Type-Options"] = "nosniff"
            if status.startswith("2") and sent.get("Content-Type", "").lower() not in _PICTURES:
                sent["Content-Disposition"] = "attachment"
        return start_response(status, sent.items(), exc_info)

    return start
