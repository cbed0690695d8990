"""Advisory locks: one number has one purpose, and all of them stand in one place."""

import re

import pytest

from esp_ingest.store.locks import LOCKS
from esp_ingest.store.queries import all_queries, query
from tests.unit.test_tidy import ROOT

TAKES = re.compile(r"pg_(?:try_)?advisory_\w*lock\w*\s*\(([^()]*)\)", re.IGNORECASE)


def test_every_key_is_another_number_of_postgresqls_bigint() -> None:
    assert len(set(LOCKS.values())) == len(LOCKS)
    assert all(0 < key < 1 << 63 for key in LOCKS.values())


def test_every_lock_is_taken_by_its_name_and_every_name_is_used() -> None:
    taken = [key for text in all_queries().values() for key in TAKES.findall(text)]
    assert taken, "the expression no longer finds them"
    assert all(re.fullmatch(r":(\w+)_lock", key) for key in taken), taken
    assert {key.removeprefix(":").removesuffix("_lock") for key in taken} == set(LOCKS)


def test_no_lock_is_taken_elsewhere() -> None:
    elsewhere = [*(ROOT / "esp_ingest").rglob("*.py"), *(ROOT / "sql" / "migrations").glob("*.sql")]
    assert elsewhere
    assert [str(path) for path in elsewhere if TAKES.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", ["migration_lock", "lead"])
def test_a_statement_has_the_number(name: str) -> None:
    text = query(name).decode()
    assert "_lock)" not in text.replace("xact_lock", "")
    assert any(str(key) in text for key in LOCKS.values())
