"""Users, sessions and tokens of the HTTP API in the database, each function one transaction on a connection in
autocommit."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import dict_row

from esp_ingest.store.connection import Connection
from esp_ingest.store.queries import query

Refusal = Literal["unknown", "reused", "revoked", "expired", "disabled"]


@dataclass(frozen=True, slots=True)
class User:
    """A local user. ``wells`` are patterns, * stands for any text."""

    name: str
    password_hash: str
    role: str
    wells: tuple[str, ...]
    disabled: bool


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of a refresh token: the user and family that it stands for, or why it was refused."""

    user_name: str
    family: UUID | None
    refused: Refusal | None = None


def token_hash(token: str) -> bytes:
    """What is stored of a token. It has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(token.encode()).digest()


def find(connection: Connection, name: str) -> User | None:
    """One by name."""
    row = connection.execute(query("api_user"), {"name": name}).fetchone()
    return None if row is None else User(row[0], row[1], row[2], tuple(row[3]), row[4])


def add(connection: Connection, name: str, password_hash: str, role: str, wells: Sequence[str]) -> bool:
    """False where the name is taken."""
    parameters = {"name": name, "hash": password_hash, "role": role, "wells": list(wells)}
    return connection.execute(query("api_add_user"), parameters).rowcount == 1


def list_users(connection: Connection) -> list[dict[str, Any]]:
    """All: name, role, wells, created_at, disabled_at, tokens."""
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query("api_list_users")).fetchall()


def disable(connection: Connection, name: str) -> bool:
    """End all that the user has. False where there is no such user."""
    with connection.transaction():
        found = connection.execute(query("api_disable_user"), {"name": name}).rowcount == 1
        connection.execute(query("api_end_sessions"), {"name": name})
        connection.execute(query("api_end_tokens"), {"name": name})
    return found


def set_password(connection: Connection, name: str, password_hash: str) -> bool:
    """A new password ends the sessions of the old one and lets a disabled user in again. False: no such user."""
    with connection.transaction():
        found = connection.execute(query("api_set_password"), {"name": name, "hash": password_hash}).rowcount == 1
        connection.execute(query("api_end_sessions"), {"name": name})
    return found


def rehash(connection: Connection, name: str, old: str, new: str) -> None:
    """The same password, hashed with newer parameters."""
    connection.execute(query("api_rehash_password"), {"name": name, "old": old, "hash": new})


def change(connection: Connection, name: str, role: str | None, wells: Sequence[str] | None) -> bool:
    """Another role, other wells; None leaves it. False where there is no such user."""
    parameters = {"name": name, "role": role, "wells": None if wells is None else list(wells)}
    return connection.execute(query("api_change_user"), parameters).rowcount == 1


def add_token(connection: Connection, name: str, token: str, expires_at: datetime) -> None:
    """A machine's token."""
    connection.execute(query("api_add_token"), {"name": name, "hash": token_hash(token), "expires_at": expires_at})


def begin_session(connection: Connection, name: str, family: UUID, token: str, expires_at: datetime) -> None:
    """The first refresh token of a family."""
    with connection.transaction():
        connection.execute(query("api_forget_sessions"))
        connection.execute(
            query("api_add_refresh_token"),
            {"hash": token_hash(token), "family": family, "name": name, "expires_at": expires_at},
        )


def refresh(connection: Connection, old: str, new: str, expires_at: datetime) -> Refreshed:
    """Take ``old`` for ``new``. A token that was used before ends its family, which is committed with that."""
    with connection.transaction():
        row = connection.execute(query("api_take_refresh_token"), {"hash": token_hash(old)}).fetchone()
        if row is None:
            return Refreshed("", None, "unknown")
        family, name, used, revoked, expired, disabled, _role = row
        refused: Refusal | None = (
            "reused" if used else "revoked" if revoked else "expired" if expired else "disabled" if disabled else None
        )
        if refused == "reused":
            connection.execute(query("api_revoke_family"), {"family": family})
        if refused is None:
            connection.execute(query("api_use_refresh_token"), {"hash": token_hash(old)})
            connection.execute(
                query("api_add_refresh_token"),
                {"hash": token_hash(new), "family": family, "name": name, "expires_at": expires_at},
            )
    return Refreshed(name, family, refused)


def end_session(connection: Connection, token: str) -> Refreshed:
    """Sign out: the family of this refresh token ends."""
    with connection.transaction():
        row = connection.execute(query("api_take_refresh_token"), {"hash": token_hash(token)}).fetchone()
        if row is None:
            return Refreshed("", None, "unknown")
        connection.execute(query("api_revoke_family"), {"family": row[0]})
    return Refreshed(row[1], row[0])


def record(
    connection: Connection, who: str, address: str, action: str, detail: Mapping[str, Any] | None = None
) -> None:
    """A line of the audit log."""
    parameters = {"who": who[:200], "address": address[:100], "action": action, "detail": json.dumps(detail or {})}
    connection.execute(query("api_record"), parameters)
