"""Named queries out of sql/queries.sql, and out of sql/api_queries.sql for the HTTP API."""

import re
from functools import cache

from esp_ingest.resources import sql_folder
from esp_ingest.store.locks import LOCKS

FILES = ("queries.sql", "api_queries.sql")
_LOCK = re.compile(r":(\w+)_lock\b")
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
    """The statement called ``name``, without its comments and with the keys of its locks, ready for psycopg. Raises
    KeyError."""
    lines = [line for line in all_queries()[name].splitlines() if not line.lstrip().startswith("--")]
    statement = "\n".join(lines).strip().removesuffix(";")
    return _LOCK.sub(lambda found: str(LOCKS[found[1]]), statement).encode()


def like(pattern: str) -> str:
    """A pattern in which * stands for any text, as LIKE spells it."""
    return re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%")
