"""Hard limits of the signals, as configured: by default, for all wells, or for one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from esp_ingest.config.settings import Limits, TelemetrySettings
from esp_ingest.model import SIGNAL_NAMES, SIGNALS, FloatArray


class HardLimits:
    """Low and high of each signal. A value on a limit is inside."""

    def __init__(self, settings: TelemetrySettings) -> None:
        built_in = np.array([(signal.low, signal.high) for signal in SIGNALS], np.float64)
        self._common = _with(built_in, settings.limits)
        self._wells = {well: _with(self._common, limits) for well, limits in settings.wells.items()}
        self._pairs = {well: _pairs(limits) for well, limits in self._wells.items()}
        self._common_pairs = _pairs(self._common)
        self.extra = {name: (signal.low, signal.high) for name, signal in settings.extra_signals.items()}

    def of(self, well: str) -> list[tuple[float, float]]:
        """(low, high) of each signal for one well, in the order of SIGNALS."""
        return self._pairs.get(well, self._common_pairs)

    def rows_outside(
        self, values: FloatArray, well_index: npt.NDArray[np.int32], wells: Sequence[str]
    ) -> npt.NDArray[np.bool_]:
        """Which of n readings hold a value outside; ``values`` is (len(SIGNALS), n), and NaN (absent) is inside."""
        if self._wells and not self._wells.keys().isdisjoint(wells):
            by_well = np.stack([self._wells.get(well, self._common) for well in wells])
            low, high = by_well[well_index, :, 0].T, by_well[well_index, :, 1].T
        else:
            low, high = self._common[:, :1], self._common[:, 1:]
        outside: npt.NDArray[np.bool_] = np.any((values < low) | (values > high), axis=0)
        return outside


def _with(base: FloatArray, changes: dict[str, Limits]) -> FloatArray:
    limits = base.copy()
    for name, change in changes.items():
        row = SIGNAL_NAMES.index(name)
        if change.low is not None:
            limits[row, 0] = change.low
        if change.high is not None:
            limits[row, 1] = change.high
    return limits


def _pairs(limits: FloatArray) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in limits]
