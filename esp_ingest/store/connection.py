"""One way to connect: timeouts, keepalives, and errors that say what to do."""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from esp_ingest.config import DatabaseSettings
from esp_ingest.seams import StoreUnavailable
from esp_ingest.store import sqlstate

Connection = psycopg.Connection[tuple[Any, ...]]

APPLICATION_NAME = "esp-ingest"


def conninfo(settings: DatabaseSettings) -> str:
    """The libpq connection string for ``settings``. What the DSN itself says wins over our defaults.

    Raises StoreUnavailable where the DSN cannot be parsed."""
    try:
        given = conninfo_to_dict(settings.dsn.get_secret_value())
    except psycopg.ProgrammingError:
        # psycopg's message repeats the string, and with it the password.
        raise StoreUnavailable("database.dsn is not a connection string", "write it as postgresql://…") from None
    ours: dict[str, Any] = {
        "connect_timeout": settings.connect_timeout_seconds,
        "application_name": APPLICATION_NAME,
        # A cut network is noticed in about 25 s rather than after hours: idle connections by probes, and data under way
        # by the longest time it may stay unacknowledged.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
    }
    if settings.password.get_secret_value():
        ours["password"] = settings.password.get_secret_value()
        given.pop("password", None)
    return make_conninfo("", **(ours | given))


def connect(settings: DatabaseSettings, *, autocommit: bool = False) -> Connection:
    """Open a connection; blocks up to ``connect_timeout_seconds`` for each address of the host.

    Raises StoreUnavailable with a reason from :mod:`esp_ingest.store.sqlstate`.

    Timeouts are set by statement and not in the startup packet, which connection poolers refuse. Statements are never
    prepared by name, so that a pooler in transaction mode will do; a batch is few statements, so that costs nothing."""
    info = conninfo(settings)
    try:
        connection: Connection = psycopg.connect(info, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise sqlstate.unavailable(error) from None
    try:
        for name, seconds in (
            ("statement_timeout", settings.statement_timeout_seconds),
            ("lock_timeout", settings.lock_timeout_seconds),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", (name, f"{round(seconds * 1000)}ms"))
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise sqlstate.unavailable(error) from None
    return connection
