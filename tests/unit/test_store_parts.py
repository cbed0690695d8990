"""The parts of the store that need no database: marks, queries, connection strings, names of migrations."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from esp_ingest.config.settings import DatabaseSettings
from esp_ingest.interfaces import StoreUnavailable
from esp_ingest.model import Readings, Wells
from esp_ingest.resources import sql_folder
from esp_ingest.store import schema
from esp_ingest.store.capabilities import Capabilities, SchemaError
from esp_ingest.store.connection import conninfo
from esp_ingest.store.queries import all_queries, query
from esp_ingest.store.schema import migrations
from esp_ingest.store.write.copy_format import REJECT_COLUMNS, TELEMETRY_COLUMNS
from esp_ingest.store.write.high_water import HighWaterMarks, first_of_each
from tests.support.store_data import readings


class TestMarks:
    def test_nothing_speaks_against_a_well_never_seen(self) -> None:
        assert HighWaterMarks().fresh(readings([("w1", -5), ("w2", 0)])).tolist() == [True, True]

    def test_what_is_not_newer_than_the_mark_is_suspect(self) -> None:
        known = HighWaterMarks()
        known.committed(readings([("w1", 10), ("w1", 5), ("w2", 1)]))
        batch = readings([("w1", 10), ("w1", 11), ("w1", 7), ("w2", 2), ("w3", 0)])
        assert known.fresh(batch).tolist() == [False, True, False, True, True]

    def test_marks_only_rise(self) -> None:
        known = HighWaterMarks()
        known.committed(readings([("w1", 10)]))
        known.committed(readings([("w1", 3)]))
        assert known.fresh(readings([("w1", 7)])).tolist() == [False]

    @given(
        st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9)), max_size=8), max_size=12), st.data()
    )
    def test_batches_that_are_prepared_before_others_are_committed(
        self, batches: list[list[tuple[str, int]]], data: st.DataObject
    ) -> None:
        """As of a dictionary of each well's newest, in any order of fresh() and committed(), forgetting apart."""
        known, plain = HighWaterMarks(), dict[str, int]()
        waiting: list[Readings] = []
        for keys in batches:
            batch = readings(keys)
            newest = [plain.get(batch.well_of(row), -1) for row in range(len(batch))]
            assert known.fresh(batch).tolist() == [
                at > newest[row] for row, at in enumerate(batch.timestamp_us.tolist())
            ]
            waiting.append(batch)
            while waiting and data.draw(st.booleans()):
                done = waiting.pop(0)
                known.committed(done)
                for row, at in enumerate(done.timestamp_us.tolist()):
                    well = done.well_of(row)
                    plain[well] = max(at, plain.get(well, -1))
            if data.draw(st.booleans()):
                known.raise_to([("c", 1), ("f", 2)])
                plain |= {well: max(at, plain.get(well, -1)) for well, at in (("c", 1), ("f", 2))}
        assert len(known) == len(plain)

    @given(
        st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from("abcde"), unique=True, max_size=5)), max_size=12),
        st.sampled_from([4, 100]),
    )
    def test_wells_with_numbers_have_the_marks_of_wells_without(
        self, batches: list[tuple[bool, list[str]]], max_wells: int
    ) -> None:
        """Also where the decoder begins another register, in which a number means another well, and where marks are
        forgotten: then there may be no mark, but no wrong one."""
        known, plain = HighWaterMarks(max_wells=max_wells), dict[str, int]()
        register = [""]
        for at, (anew, names) in enumerate(batches):
            register = [""] if anew else register
            register += [name for name in names if name not in register]
            batch = readings([(name, at % 3) for name in names])
            numbers = np.array([register.index(name) for name in batch.wells], np.intp)
            batch = replace(batch, wells=Wells(batch.wells, numbers, register))
            times = [at % 3] * len(names)
            fresh = known.fresh(batch).tolist()
            expected = [time > plain.get(name, -1) for name, time in zip(names, times, strict=True)]
            assert fresh == expected or (max_wells == 4 and all(map(int.__ge__, fresh, expected)))
            known.committed(batch)
            assert not known.fresh(batch).any() or max_wells == 4
            plain |= {name: max(time, plain.get(name, -1)) for name, time in zip(names, times, strict=True)}

    def test_memory_is_bounded(self) -> None:
        known = HighWaterMarks(max_wells=10)
        for number in range(100):
            known.committed(readings([(f"w{number}", 0)]))
            assert len(known) <= 10

    @given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 5)), max_size=30), st.booleans())
    def test_first_of_each(self, keys: list[tuple[str, int]], apart: bool) -> None:
        batch = readings(keys)
        if apart and keys:  # so far apart that one integer cannot hold both
            batch.timestamp_us[batch.timestamp_us > np.median(batch.timestamp_us)] += 2**62
        seen: set[Any] = set()
        expected = []
        for row in range(len(batch)):
            key = (batch.well_of(row), int(batch.timestamp_us[row]))
            expected.append(key not in seen)
            seen.add(key)
        first = first_of_each(batch)
        assert (first is None) == all(expected)
        if first is not None:
            assert first.tolist() == expected


class TestQueries:
    def test_each_is_described(self) -> None:
        for name, text in all_queries().items():
            assert text.startswith("-- "), name

    def test_an_unknown_name_is_an_error(self) -> None:
        with pytest.raises(KeyError):
            query("nonsense")

    def test_they_stand_without_comments_and_semicolons(self) -> None:
        for name in all_queries():
            assert b"--" not in query(name)
            assert not query(name).endswith(b";")

    @pytest.mark.parametrize(
        ("name", "columns"),
        [
            ("insert_staged", TELEMETRY_COLUMNS),
            ("copy_staging_rejects", REJECT_COLUMNS),
            ("insert_staged_rejects", REJECT_COLUMNS[:-1]),
        ],
    )
    def test_columns_stand_in_the_order_that_the_streams_have(self, name: str, columns: tuple[str, ...]) -> None:
        text = query(name).decode()
        lists = [text[text.index("(") + 1 : text.index(")")]]
        if "SELECT" in text:
            lists.append(text[text.index("SELECT") + 6 : text.index("FROM")])
        for found in lists:
            assert tuple(part.strip().strip('"') for part in found.split(",")) == columns


class TestConnectionString:
    def info(self, dsn: str, **settings: Any) -> dict[str, Any]:
        return dict(conninfo_to_dict(conninfo(DatabaseSettings(dsn=SecretStr(dsn), **settings))))

    def test_a_cut_network_is_noticed(self) -> None:
        info = self.info("postgresql://u@h/d", connect_timeout_seconds=7)
        assert (info["host"], info["user"], info["dbname"]) == ("h", "u", "d")
        assert str(info["connect_timeout"]) == "7"
        assert info["application_name"] == "esp-ingest"
        idle, interval, count = (int(info[f"keepalives_{k}"]) for k in ("idle", "interval", "count"))
        assert idle + interval * count <= 30
        assert int(info["tcp_user_timeout"]) <= 30_000

    def test_what_the_dsn_says_wins(self) -> None:
        info = self.info("host=h application_name=mine connect_timeout=3")
        assert (info["application_name"], str(info["connect_timeout"])) == ("mine", "3")

    def test_the_password_setting_wins_over_the_dsn(self) -> None:
        info = self.info("postgresql://u:old@h/d", password=SecretStr("n'e w"))
        assert info["password"] == "n'e w"

    def test_nobody_is_asked_for_the_password_of_an_encrypted_key(self) -> None:
        """libpq has OpenSSL ask on the terminal where it is given none."""
        assert self.info("sslkey=k")["sslpassword"]
        assert self.info("sslkey=k sslpassword=mine")["sslpassword"] == "mine"

    def test_an_empty_dsn_leaves_it_to_libpq(self) -> None:
        assert "host" not in self.info("")

    def test_nonsense_is_said_without_the_password(self) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            self.info("host=h password='secret")
        assert "secret" not in str(caught.value)
        assert "database.dsn" in caught.value.reason


class TestMigrationFiles:
    def test_numbers_begin_at_one_and_have_no_gap(self) -> None:
        numbers = sorted({step.number for step in migrations()})
        assert numbers == list(range(1, len(numbers) + 1))

    def test_a_number_and_feature_is_taken_once(self) -> None:
        keys = [step.key for step in migrations()]
        assert len(set(keys)) == len(keys)

    def test_each_says_what_it_does(self) -> None:
        for path in sorted((sql_folder() / "migrations").glob("*.sql")):
            assert path.read_text(encoding="utf-8").startswith("-- "), path.name

    @pytest.mark.parametrize("name", ["1_x.sql", "0001_x.oracle.sql", "0001-x.sql", "notes.txt"])
    def test_a_wrong_name_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("SELECT 1")
        with pytest.raises(SchemaError, match=re.escape(name)):
            migrations(tmp_path)

    def test_a_checksum_follows_the_text(self) -> None:
        one = schema.Migration(1, "", "x", "SELECT 1")
        assert one.checksum != schema.Migration(1, "", "x", "SELECT 2").checksum
        assert one.checksum == schema.Migration(1, "", "x", "SELECT 1").checksum


@pytest.mark.parametrize(
    ("timescaledb", "license", "features"),
    [
        ("", "", set()),
        ("2.12.2", "timescale", set()),
        ("2.19.3", "apache", {"timescaledb"}),
        ("2.18.0", "timescale", {"timescaledb", "community"}),
        ("2.18.1", "timescale", {"timescaledb", "community", "columnstore"}),
        ("2.23.0-dev", "timescale", {"timescaledb", "community", "columnstore"}),
        ("2.9", "timescale", set()),
    ],
)
def test_features_by_version_and_edition(timescaledb: str, license: str, features: set[str]) -> None:
    have = Capabilities(postgresql=17_00_05, timescaledb=timescaledb, license=license)
    assert have.features == features
    lines = have.lines()
    assert len(lines) == 4
    assert sum(line.startswith("can:") for line in lines) == len(features)
    assert have.kind.startswith("PostgreSQL 17.5")


def test_a_database_that_is_not_there_is_reported_and_not_raised() -> None:
    settings = DatabaseSettings(dsn=SecretStr("postgresql://x@127.0.0.1:1/x"))
    check, found = schema.check_database(settings)
    assert check.status == "unreachable"
    assert "does not answer at its address" in check.detail
    assert found is None


def test_a_server_that_does_not_wait_for_its_disk_is_told_of() -> None:
    safe, unsafe = (Capabilities(17_00_05, "2.23.0", "timescale", fsync=fsync).lines() for fsync in (True, False))
    assert [line for line in unsafe if line not in safe] == [
        "note:   fsync = off: a power cut may cost readings that were acknowledged, or the whole database"
    ]
