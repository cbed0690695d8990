"""The connection that readings are written on: opened when it is needed, and opened again after it was lost."""

from collections.abc import Callable

import psycopg
from psycopg.pq import TransactionStatus

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.store import schema, sqlstate
from esp_ingest.store.capabilities import SchemaError
from esp_ingest.store.connection import Connection


class WriterSession:
    """For one thread. ``is_new`` is called with each new connection, whose transaction is undone then.

    ``schema_ok`` belongs to :meth:`PostgresStore.ping`; it ends with the connection."""

    def __init__(
        self,
        settings: DatabaseSettings,
        connect: Callable[[DatabaseSettings], Connection],
        is_new: Callable[[Connection], None],
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._is_new = is_new
        self.schema_ok = False
        self.connection: Connection | None = None  # as it is, perhaps lost

    def get(self) -> Connection:
        """The connection, open and in no transaction. Blocks while it connects. Raises StoreUnavailable."""
        connection = self.standing()
        return self._opened() if connection is None else connection

    def standing(self) -> Connection | None:
        """The connection if it stands, in no transaction; None otherwise. What an interrupted write left open on it is
        undone here."""
        connection = self.connection
        if connection is not None and (connection.closed or connection.broken):
            self.close()
        elif connection is not None and connection.info.transaction_status != TransactionStatus.IDLE:
            self.give_back()
        return self.connection

    def _opened(self) -> Connection:
        connection = self._connect(self._settings)
        try:
            if not self._settings.skip_init:
                refuse_unless_ok(connection, schema.check_version)
            self._is_new(connection)
            connection.rollback()
        except psycopg.Error as error:
            connection.close()
            raise sqlstate.unavailable(error) from None
        except StoreUnavailable:
            connection.close()
            raise
        self.connection = connection
        return connection

    def give_back(self, error: BaseException | None = None) -> None:
        """After ``error``: back to a connection in no transaction, or to none."""
        connection = self.connection
        if connection is None:
            return
        # An open COPY holds psycopg's lock of the connection, so a rollback would wait for it for ever.
        is_busy = connection.info.transaction_status == TransactionStatus.ACTIVE
        if is_busy or (error is not None and sqlstate.wants_new_session(error)):
            self.close()
            return
        try:
            connection.rollback()
        except psycopg.Error:
            self.close()
        else:
            if connection.closed or connection.broken:
                self.close()

    def close(self) -> None:
        """Close the connection; :meth:`get` opens another."""
        connection, self.connection = self.connection, None
        self.schema_ok = False
        if connection is not None:
            connection.close()


def refuse_unless_ok(connection: Connection, check: Callable[[Connection], schema.SchemaCheck]) -> schema.SchemaCheck:
    """What ``check`` finds. Raises StoreUnavailable if something is wrong, and psycopg.Error."""
    try:
        found = check(connection)
    except SchemaError as error:
        raise StoreUnavailable("the database cannot be used", str(error)) from None
    if not found.ok:
        differs = found.status == "needs migrate"
        reason = "the schema is not the one this program writes" if differs else "nothing can be stored here"
        raise StoreUnavailable(reason, found.detail)
    return found
