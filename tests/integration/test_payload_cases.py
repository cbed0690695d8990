"""Messages from the field, decoded and written into a real database, read back by SQL."""

import base64
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from esp_ingest.config.settings import TelemetrySettings
from esp_ingest.model import SIGNAL_NAMES, Delivery
from esp_ingest.store.schema import migrate
from esp_ingest.store.write.writer import PostgresStore
from esp_ingest.telemetry.decode import Decoder
from tests.support.databases import Database

NOW_US = 1_795_554_000_000_000  # 2026-11-24T21:00:00Z
TIME = '"timestamp":"2026-11-24T20:59:59Z"'
CASES = Path(os.environ.get("ESP_INGEST_PAYLOAD_CASES", "/work/shared/cases/payloads.jsonl"))
OURS: list[tuple[str, dict[str, Any]]] = [
    (f'{{{TIME},"pip":-1.#IND,"gor":1}}', {"values": {"pip": None, "gor": 1.0}, "quality": {"pip": "-1.#IND"}}),
    (f'{{{TIME},"pip":"∞"}}', {"values": {"pip": None}, "quality": {"pip": "∞"}}),
    (f'{{{TIME},"pip":[1,"\\ud800"]}}', {"quality": {"pip": [1, "\\ud800"]}}),
    (f'{{{TIME},"pip":1,"a\\u0000":{{"b":nan}}}}', {"extra": {"a\\u0000": {"b": "nan"}}, "values": {"pip": 1.0}}),
    (f'{{{TIME},"pip":1,"long":"{"é" * 400_000}"}}', {"extra": {"long": "é" * 400_000}}),
    ('\0{"timestamp":"2026-11-24T21:59:58,5+01","pip":1}\0', {"timestamp": "2026-11-24T20:59:58.5Z"}),
]


def store_and_compare(database: Database, topic: str, payload: bytes, expect: dict[str, Any], **settings: Any) -> None:
    with database.connect() as connection:
        connection.execute("TRUNCATE esp_telemetry, ingest_rejects")
    decoded = Decoder(TelemetrySettings.model_validate(settings), "esp").decode(
        [Delivery(topic.encode(), payload, 1, 1, 1, NOW_US)]
    )
    store = PostgresStore(database.settings)
    store.write(decoded.readings, decoded.rejects, [])
    store.close()
    rows = database.all(f"SELECT timestamp, extra, quality, {', '.join(SIGNAL_NAMES)} FROM esp_telemetry")
    rejects = database.all("SELECT detail, payload FROM ingest_rejects")
    assert (len(rows), len(rejects)) == (expect.get("stored", 0), expect.get("rejected", 0))
    for detail, kept in rejects:
        assert expect.get("detail_has", "") in detail
        assert bytes(kept) == payload
    for at, extra, quality, *values in rows:
        found = dict(zip(SIGNAL_NAMES, values, strict=True))
        assert found == found | expect.get("values", {})
        assert (quality or {}) == (quality or {}) | expect.get("quality", {})
        assert (extra or {}) == (extra or {}) | expect.get("extra", {})
        assert set(expect.get("quality_keys", [])) <= set(quality or {})
        assert set(expect.get("extra_keys", [])) <= set(extra or {})
        assert "timestamp" not in expect or at == datetime.fromisoformat(expect["timestamp"])


def test_our_cases(native_database: Database) -> None:
    migrate(native_database.settings)
    for text, expect in OURS:
        store_and_compare(native_database, "esp/w1/telemetry", text.encode(), {"stored": 1, **expect})


@pytest.mark.skipif(not CASES.exists(), reason=f"{CASES} is not there: set ESP_INGEST_PAYLOAD_CASES")
def test_cases_from_the_field(native_database: Database) -> None:
    migrate(native_database.settings)
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        settings = {key.removeprefix("telemetry."): value for key, value in case.get("settings", {}).items()}
        payload = base64.b64decode(case["payload_base64"])
        store_and_compare(native_database, case["topic"], payload, case["expect"], **settings)
