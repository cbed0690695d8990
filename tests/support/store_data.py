"""Readings, rejects and diagnoses for the tests of the store."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from esp_ingest.model import SIGNALS, DiagnosticRow, Readings, Reject, RejectReason, Severity

START_US = 1_764_000_000_000_000  # 2025-11-24 16:00 UTC


def readings(
    keys: Sequence[tuple[str, int]],
    values: Sequence[float] | None = None,
    extra: dict[int, str] | None = None,
    quality: dict[int, str] | None = None,
    received_us: int = START_US,
) -> Readings:
    """A reading a key (well, seconds after START_US). ``values`` is flow_rate; the other signals count up from it, and
    drive_voltage is absent."""
    wells = sorted({well for well, _ in keys})
    flow = np.arange(len(keys), dtype=np.float64) if values is None else np.array(values, np.float64)
    columns = flow[None, :] + np.arange(len(SIGNALS))[:, None] / 7
    columns[-1] = np.nan
    return Readings(
        wells=wells,
        well_index=np.array([wells.index(well) for well, _ in keys], np.int32),
        timestamp_us=np.array([START_US + at * 1_000_000 for _, at in keys], np.int64),
        received_us=np.full(len(keys), received_us, np.int64),
        values=columns,
        extra=extra or {},
        quality=quality or {},
    )


def reject(
    number: int = 0, redelivered: int = 0, received_us: int | None = None, connection: int = -1, packet_id: int = 0
) -> Reject:
    return Reject(
        received_us=START_US + number if received_us is None else received_us,
        topic=b"esp/w1/telemetry",
        reason=RejectReason.INVALID_JSON,
        detail="not JSON at byte 3",
        payload=b'{"broken %d' % number,
        redelivered=redelivered,
        connection=connection,
        packet_id=packet_id,
    )


DIAGNOSIS = DiagnosticRow(
    well_id="w1",
    diagnosis="gas_lock",
    raised_us=START_US,
    severity=Severity.HIGH,
    state="active",
    cleared_us=None,
    value=1.5,
    threshold=2.0,
    peak=None,
    occurrences=1,
    confidence=0.75,
    message="flow fell",
    actions_json='["vent"]',
    snapshot_json='{"flow_rate": 1.5}',
)


def cleared(row: DiagnosticRow, after_us: int) -> DiagnosticRow:
    return replace(row, cleared_us=row.raised_us + after_us, state="cleared")
