"""Keeps connections to MariaDB cheap: their TLS settings are made once."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

_OFFERED = 0x800  # CLIENT_SSL of the protocol


def make_tls_settings_once(engine: sa.Engine) -> None:
    """Let PyMySQL connect each time with the TLS settings of the first connection.

    By default it takes TLS where a server offers it and checks no certificate, but reads all those
    of the system for each connection. That took 27 ms of a core where the rest took one, and a
    trial is some thirty transactions. Settings in the URL are left alone. Once a server has
    offered TLS, a connection without is refused.
    """
    told = any(name.startswith("ssl") for name in engine.url.query)
    if engine.dialect.driver != "pymysql" or told:
        return
    settings: dict[str, Any] = {}

    def lend(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> None:
        options.update(settings)

    def keep(connection: Any, record: object) -> None:
        offered = connection.ssl and connection.server_capabilities & _OFFERED
        settings.update({"ssl": connection.ctx} if offered else {"ssl_disabled": True})

    sa.event.listen(engine, "do_connect", lend)
    sa.event.listen(engine, "connect", keep)
