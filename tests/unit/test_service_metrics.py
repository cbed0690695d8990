"""Metrics: the contract's names, closed labels at 0, and the vectorised histogram against the library's own."""

import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prometheus_client import Histogram, generate_latest

from esp_ingest.model import SIGNAL_NAMES, RejectReason, Unusable
from esp_ingest.service.metrics import Metrics, observe_many

# CONTRACT.md, "Metrics": name → labels.
CONTRACT: dict[str, tuple[str, ...]] = {
    "messages_received_total": ("qos",),
    "messages_acked_total": (),
    "readings_written_total": (),
    "readings_duplicate_total": (),
    "readings_rejected_total": ("reason",),
    "values_out_of_range_total": ("signal",),
    "batch_rows": (),
    "batch_write_seconds": (),
    "ingest_latency_seconds": (),
    "reading_age_seconds": (),
    "buffer_messages": (),
    "unacked_messages": (),
    "oldest_unacked_seconds": (),
    "mqtt_connected": (),
    "mqtt_reconnects_total": (),
    "database_up": (),
    "database_retries_total": (),
    "spool_messages": (),
    "spool_bytes": (),
    "diagnostics_raised_total": ("diagnosis", "severity"),
    "diagnostics_active": ("diagnosis", "severity"),
}


def test_every_metric_of_the_contract_is_there_with_its_labels() -> None:
    listed = {info.name: info.labels for info in Metrics().catalogue}
    for name, labels in CONTRACT.items():
        assert listed[f"esp_ingest_{name}"] == labels
    assert "esp_ingest_build_info" in listed


def test_the_catalogue_is_what_the_page_shows() -> None:
    metrics = Metrics()
    for name in ("diagnostics_raised", "diagnostics_active"):
        getattr(metrics, name).labels("gas_lock", "high")
    page = metrics.render().decode()
    shown = set(re.findall(r"^# TYPE (esp_ingest_\S+)", page, re.MULTILINE))
    assert shown == {info.name for info in metrics.catalogue}
    assert "_created" not in page


def test_series_of_closed_lists_exist_at_zero_from_the_start() -> None:
    page = Metrics().render().decode()
    for reason in RejectReason:
        assert f'esp_ingest_readings_rejected_total{{reason="{reason.value}"}} 0.0' in page
    for signal in SIGNAL_NAMES:
        assert f'esp_ingest_values_out_of_range_total{{signal="{signal}"}} 0.0' in page
        for kind in Unusable:
            assert f'esp_ingest_values_unusable_total{{kind="{kind.value}",signal="{signal}"}} 0.0' in page
    for qos in "012":
        assert f'esp_ingest_messages_received_total{{qos="{qos}"}} 0.0' in page


def test_two_sets_of_metrics_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.readings_written.inc(7)
    assert b"esp_ingest_readings_written_total 7.0" in one.render()
    assert b"esp_ingest_readings_written_total 0.0" in other.render()


def test_the_page_is_that_of_its_registry() -> None:
    metrics = Metrics()
    assert metrics.render() == generate_latest(metrics.registry)


def test_the_process_is_described_and_refreshed() -> None:
    metrics = Metrics()
    before = float(re.findall(rb"^process_resident_memory_bytes (\S+)", metrics.render(), re.MULTILINE)[0])
    ballast = np.ones(8_000_000)
    metrics.refresh_process()
    after = float(re.findall(rb"^process_resident_memory_bytes (\S+)", metrics.render(), re.MULTILINE)[0])
    assert after - before > ballast.nbytes / 2


def test_no_metric_is_labelled_by_well() -> None:
    assert not [info.name for info in Metrics().catalogue if "well_id" in info.labels]


def _histograms(buckets: tuple[float, ...]) -> tuple[Histogram, Histogram]:
    return (
        Histogram("one", "by observe", buckets=buckets, registry=None),
        Histogram("one", "by observe_many", buckets=buckets, registry=None),
    )


def _samples(histogram: Histogram) -> list[tuple[str, dict[str, str], float]]:
    family = next(iter(histogram.collect()))
    return [(sample.name, sample.labels, sample.value) for sample in family.samples]


BUCKETS = (-1.0, 0.0, 0.001, 0.1, 1.0, 10.0)


@given(
    arrays(
        np.float64,
        st.integers(0, 60),
        elements=st.one_of(
            st.sampled_from(BUCKETS), st.floats(allow_nan=False, min_value=-1e6, max_value=1e6), st.just(np.inf)
        ),
    )
)
@settings(max_examples=150, deadline=None)
def test_observe_many_is_observe_many_times(values: npt.NDArray[np.float64]) -> None:
    by_one, at_once = _histograms(BUCKETS[1:])
    for value in values:
        by_one.observe(float(value))
    observe_many(at_once, values)
    for (name, labels, expected), (same_name, same_labels, value) in zip(
        _samples(by_one), _samples(at_once), strict=True
    ):
        assert (name, labels) == (same_name, same_labels)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_observe_many_takes_integers_and_leaves_nan_out() -> None:
    _, histogram = _histograms((1.0, 10.0))
    observe_many(histogram, np.array([1, 2, 30]))
    observe_many(histogram, np.array([np.nan, 5.0]))
    observe_many(histogram, np.array([]))
    values = {(name, labels.get("le")): value for name, labels, value in _samples(histogram)}
    assert values[("one_bucket", "1.0")] == 1
    assert values[("one_bucket", "10.0")] == 3
    assert values[("one_bucket", "+Inf")] == 4
    assert values[("one_sum", None)] == 38
