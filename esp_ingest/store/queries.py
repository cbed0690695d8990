"""Named queries out of sql/queries.sql, and out of sql/api_queries.sql for the HTTP API.

What the program knows better than a file stands there as a name: ``:NAME_lock`` is the key of an advisory lock,
``:signals`` the columns of all signals, ``:signals_of_t`` the same of the alias t, and ``:signals_as_excluded`` their
assignments in an upsert."""

import re
from functools import cache

from psycopg import sql

from esp_ingest.model import SIGNAL_NAMES
from esp_ingest.resources import sql_folder
from esp_ingest.store.locks import LOCKS

FILES = ("queries.sql", "api_queries.sql")
_LOCK = re.compile(r":(\w+)_lock\b")
_SIGNALS = re.compile(r"(?<!:):signals(?:_(as_excluded|of_\w+))?\b")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def all_queries() -> dict[str, str]:
    """name → SQL, its description included as comments."""
    texts = [(sql_folder() / name).read_text(encoding="utf-8") for name in FILES]
    parts = [part for text in texts for part in _NAME.split(text)[1:]]
    names, bodies = parts[::2], parts[1::2]
    assert len(set(names)) == len(names), "a query's name is taken twice"
    return {name: body.strip() for name, body in zip(names, bodies, strict=True)}


@cache
def query(name: str) -> bytes:
    """The statement called ``name``, without its comments and with its names filled in, ready for psycopg. Raises
    KeyError."""
    lines = [line for line in all_queries()[name].splitlines() if not line.lstrip().startswith("--")]
    statement = "\n".join(lines).strip().removesuffix(";")
    statement = _SIGNALS.sub(lambda found: _columns_of_signals(found[1] or ""), statement)
    return _LOCK.sub(lambda found: str(LOCKS[found[1]]), statement).encode()


def composed(name: str, **names: sql.Composable) -> sql.Composed:
    """The statement called ``name`` with what stands in braces filled in."""
    return sql.SQL(query(name).decode()).format(**names)


@cache
def copy_of(name: str, columns: tuple[str, ...]) -> bytes:
    """The COPY called ``name``, of these columns."""
    return composed(name, columns=sql.SQL(", ").join(map(sql.Identifier, columns))).as_bytes(None)


def _columns_of_signals(form: str) -> str:
    if form == "as_excluded":
        return ", ".join(f"{name} = excluded.{name}" for name in SIGNAL_NAMES)
    alias = form.removeprefix("of_")
    return ", ".join(f"{alias}.{name}" if alias else name for name in SIGNAL_NAMES)


def like(pattern: str) -> str:
    """A pattern in which * stands for any text, as LIKE spells it."""
    return re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%")
