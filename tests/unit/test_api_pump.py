"""The operating point of a pump, with figures that were calculated by hand, and its table in the configuration."""

from pathlib import Path

import pytest

from esp_ingest.api.reads.pump import operating_point
from esp_ingest.config.load import load
from esp_ingest.config.pumps import Pump, PumpsSettings
from esp_ingest.config.settings import ConfigError

CATALOGUE = Pump(curve=[(0, 52), (1_500, 44), (3_000, 8)], stages=120, recommended_bpd=(1_100, 2_100))


def test_the_affinity_laws_move_a_curve() -> None:
    """By hand, 60 → 50 Hz: flow × 5/6, head × 25/36, 120 stages."""
    point = operating_point(
        CATALOGUE, PumpsSettings(), frequency=50.0, flow_rate=1_000.0, intake=600.0, discharge=2_200.0
    )
    assert point.curve_hz == 50.0
    assert point.curve == [
        (0.0, pytest.approx(4_333.333, abs=0.001)),  # 52 · 120 · 25/36
        (pytest.approx(1_250.0), pytest.approx(3_666.667, abs=0.001)),  # 44 · 120 · 25/36
        (pytest.approx(2_500.0), pytest.approx(666.667, abs=0.001)),  # 8 · 120 · 25/36
    ]
    assert point.recommended == (pytest.approx(916.667, abs=0.001), pytest.approx(1_750.0))
    assert point.head == pytest.approx(4_000.0)  # (2 200 − 600) psi ÷ 0.4 psi/ft
    assert point.curve_head == pytest.approx(3_800.0)  # 4 333.3 − 0.8 · 666.7
    at_reference = operating_point(
        CATALOGUE, PumpsSettings(), frequency=60.0, flow_rate=None, intake=None, discharge=None
    )
    assert at_reference.curve == [(0.0, 6_240.0), (1_500.0, 5_280.0), (3_000.0, 960.0)]


@pytest.mark.parametrize("frequency", [None, 0.0, 5.0])
def test_a_pump_that_stands_still_has_its_catalogues_curve(frequency: float | None) -> None:
    point = operating_point(
        CATALOGUE, PumpsSettings(), frequency=frequency, flow_rate=0.0, intake=900.0, discharge=1_000.0
    )
    assert (point.curve_hz, point.curve[0]) == (60.0, (0.0, 6_240.0))
    assert point.curve_head is None, "it says nothing of a head that nobody makes"


def test_what_is_missing_and_what_lies_beside_the_curve() -> None:
    own = CATALOGUE.model_copy(update={"gradient_psi_per_ft": 0.5, "recommended_bpd": None})
    point = operating_point(own, PumpsSettings(), frequency=60.0, flow_rate=3_001.0, intake=100.0, discharge=1_100.0)
    assert (point.head, point.curve_head, point.recommended) == (2_000.0, None, None)
    for intake, discharge in ((None, 1_100.0), (100.0, None)):
        point = operating_point(
            own, PumpsSettings(), frequency=60.0, flow_rate=None, intake=intake, discharge=discharge
        )
        assert (point.flow_rate, point.head, point.curve_head) == (None, None, None)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("curve = [[0, 52], [0, 44]]", "by_well.ESP-01.curve must be by rising flow: [[flow in bbl/d, head in ft], …]"),
        ("curve = [[0, 52]]", "curve"),
        ("curve = [[0, -1], [1, 2]]", "must be at least 0"),
        ("curve = [[0, 52], [1, inf]]", "must be a finite number"),
        ("curve = [[0, 0], [1, 0]]", "curve must have a head above 0 somewhere"),
        ("curve = [[0, 52], [1, 2]], stages = 0", "must be at least 1"),
        ("curve = [[0, 52], [1, 2]], recommended_bpd = [2, 1]", "must be [low, high] with low below high"),
        ("curve = [[0, 52], [1, 2]], stage = 3", "did you mean pumps.by_well.ESP-01.stages?"),
        ("stages = 3", "is missing"),
    ],
)
def test_a_pump_that_cannot_be_is_said(tmp_path: Path, table: str, words: str) -> None:
    file = tmp_path / "file.toml"
    file.write_text(f'[pumps]\nby_well."ESP-01" = {{ {table} }}\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert words in str(caught.value)
    assert "pumps.by_well.ESP-01" in str(caught.value)
