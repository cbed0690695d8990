"""A fleet of wells with ESPs: physics simple enough to read, coupled enough to be believed.

Each well is an inflow and a pump that must agree, solved exactly at each sample:

- inflow: pip = Pr − q/J, the straight-line inflow performance (IPR) of an undersaturated reservoir, at pump depth;
- pump: head = g · r² · H0 − k·q², with r = f/f0; the affinity laws (Q ~ f, H ~ f², P ~ f³) follow from the r²;
- outflow: discharge = Pd0 + c·q², hydrostatic and wellhead pressure plus friction in the tubing;
- so (k + c)·q² + q/J − (Pr + g·r²·H0 − Pd0) = 0 gives the rate q;
- current: A = A0 · r² · (share at no load + share that grows with q/r): power goes with f³, voltage with f;
- intake pressure follows the inflow with the storage of the annulus (30 min), the winding its heating by A² and its
  cooling by the flow past the motor (20 min);
- slow wander (reservoir, GOR, free gas in the head factor g) and the noise of instruments. All of it is stationary and
  bounded, so that a healthy well stays in its ranges for a year: 800–1 200 bbl/d, 1 800–2 200 psi, 45–55 A,
  180–220 °F, 0.1–0.5 in/s, 58–62 Hz, 200–400 scf/bbl.

Sources: G. Takács, Electrical Submersible Pumps Manual (affinity laws, nodal analysis, motor heating); the figures are
defaults of ours within usual ranges. What each fault does and which rule names it: docs/simulator.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from esp_ingest.model import SIGNAL_ROW, SIGNALS, FloatArray, Readings
from esp_ingest.telemetry.joining import stacked

DEFAULT_START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z


class FaultName(StrEnum):
    """The faults that can be simulated. docs/simulator.md describes what each does to the signals."""

    GAS_LOCK = "gas_lock"
    PUMP_OFF = "pump_off"
    BROKEN_SHAFT = "broken_shaft"
    DEAD_HEAD = "dead_head"
    TUBING_LEAK = "tubing_leak"
    OVERLOAD = "overload"
    MOTOR_HOT = "motor_hot"
    VIBRATION = "vibration"
    FROZEN_SIGNAL = "frozen_signal"
    GAUGE_DROPOUT = "gauge_dropout"
    TRIP = "trip"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that begins ``after_seconds`` from the fleet's start, at one well (its number) or, with None, at all
    wells."""

    name: FaultName
    well: int | None = None
    after_seconds: float = 0.0
    duration_seconds: float = float("inf")


# Per well, drawn once: (low, high). Centres keep the contract's ranges at least four spreads away.
_FREQUENCY = (59.4, 60.6)  # Hz
_RATE = (930.0, 1_070.0)  # bbl/d
_INTAKE = (1_930.0, 2_070.0)  # psi
_CURRENT = (48.5, 51.5)  # A
_WINDING = (193.0, 207.0)  # °F
_VIBRATION = (0.16, 0.24)  # in/s
_GOR = (270.0, 330.0)  # scf/bbl

_DRAWDOWN = 1_200.0  # psi: reservoir pressure less intake pressure at the nominal rate
_LIFT = 1_500.0  # psi: pressure that the pump adds at the nominal rate
_SHUT_IN_SHARE = 1.4  # shut-in head to head at the nominal rate
_FRICTION = 150.0  # psi in the tubing at the nominal rate
_WELLHEAD, _CASING = 250.0, 180.0  # psi
_NO_LOAD = 0.65  # share of the current that does not grow with the rate (magnetising, shut-in power)
_AMBIENT = 165.0  # °F of the fluid at the intake
# Cooling of the motor in standing fluid, as a share of that at the nominal rate. In between, it grows with the rate to
# the power of 0.6, as for turbulent flow along a cylinder.
_STILL_COOLING = 0.15
_VOLTS_PER_HERTZ = 24.0
_STORAGE_SECONDS, _THERMAL_SECONDS = 1_800.0, 1_200.0

# Slow wander: an Ornstein–Uhlenbeck process each, (spread relative to 1, or in Hz; correlation time in seconds).
_WANDER = {
    "reservoir": (0.004, 10 * 86_400.0),
    "gor": (0.04, 7_200.0),
    "head": (0.004, 300.0),
    "load": (0.004, 300.0),
    "vibration": (0.06, 600.0),
    "frequency": (0.08, 900.0),
    "wellhead": (0.02, 3_600.0),
}
_BOUND = 3.5  # spreads

# Noise of the instruments (in the signal's unit), and the decimals they report.
_NOISE = {
    "flow_rate": (5.0, 1),
    "pip": (1.0, 2),
    "motor_current": (0.12, 2),
    "motor_temp": (0.1, 2),
    "vibration": (0.004, 4),
    "vsd_frequency": (0.02, 2),
    "gor": (2.0, 1),
    "discharge_pressure": (2.0, 2),
    "wellhead_pressure": (0.5, 2),
    "casing_pressure": (0.5, 2),
    "intake_temp": (0.05, 2),
    "leakage_current": (0.005, 4),
    "drive_voltage": (2.0, 1),
}
_GAUGE = ("pip", "motor_temp", "vibration", "discharge_pressure", "intake_temp")  # the downhole tool
_BLOCK_VALUES = 400_000


@dataclass(slots=True)
class _Conditions:
    """What acts on the wells during a block of samples, each (samples, wells). A factor of 1 and an addition of 0
    stand for a healthy well."""

    head: FloatArray  # factor on the pump's head
    load: FloatArray  # factor on the current
    valve: FloatArray  # share of the rate that reaches the surface's choke: 0 is shut
    leak: FloatArray  # share of the pump's rate that runs back into the annulus
    inflow: FloatArray  # factor on the intake pressure, for a well that is pumped off
    rate: FloatArray  # factor on the rate, for a well that gives less than it is drawn down for
    heat: FloatArray  # °F on top
    shake: FloatArray  # in/s on top
    speed: FloatArray  # factor on the frequency: 0 is stopped
    gas: FloatArray  # factor on the GOR


class Fleet:
    """``wells`` wells, each sampled every ``interval_seconds``. The same arguments give the same readings, in
    whatever portions they are asked for. Memory is bounded by one block of about 400 000 values a signal."""

    def __init__(
        self,
        wells: int,
        seed: int = 1,
        interval_seconds: float = 1.0,
        faults: Sequence[Fault] = (),
        start_us: int = DEFAULT_START_US,
        prefix: str = "sim-",
        spread: bool = True,
    ) -> None:
        """``spread``: each well samples at its own moment within the interval, as real controllers do."""
        if wells < 1 or interval_seconds <= 0:
            raise ValueError("a fleet needs at least one well and a positive interval")
        self.wells = [f"{prefix}{number:05d}" for number in range(wells)]
        self.faults = tuple(faults)
        self._interval_us = round(interval_seconds * 1e6)
        self._interval_seconds = self._interval_us / 1e6
        self._start_us = start_us
        self._random = np.random.default_rng(seed)
        self._block_samples = max(1, min(1_024, _BLOCK_VALUES // (wells * len(SIGNALS))))
        self._samples = 0
        self._pending: list[Readings] = []
        self._draw_wells(wells)
        self._phase_us = np.zeros(wells, np.int64)
        if spread:
            self._phase_us = self._random.integers(0, max(1, self._interval_us // 1000), wells) * 1000
        self._frozen: dict[int, FloatArray] = {}

    def _draw_wells(self, wells: int) -> None:
        def draw(low: float, high: float) -> FloatArray:
            return self._random.uniform(low, high, wells)

        self._f0, self._q0, self._pip0 = draw(*_FREQUENCY), draw(*_RATE), draw(*_INTAKE)
        self._amps0, self._temp0 = draw(*_CURRENT), draw(*_WINDING)
        self._vibration0, self._gor0 = draw(*_VIBRATION), draw(*_GOR)
        self._phase = draw(0.0, 2 * np.pi)
        self._productivity = self._q0 / _DRAWDOWN
        self._shut_in = _SHUT_IN_SHARE * _LIFT
        self._pump_loss = (_SHUT_IN_SHARE - 1) * _LIFT / self._q0**2
        self._friction = _FRICTION / self._q0**2
        self._static = self._pip0 + _LIFT - _FRICTION
        self._wander = self._random.standard_normal((len(_WANDER), wells))
        # The lagged quantities start in balance: intake pressure and winding temperature.
        self._lagged = np.stack([self._pip0, self._temp0])

    def step(self) -> Readings:
        """The next sample of each well."""
        return next(iter(self.run(1)))

    def run(self, samples: int) -> Iterator[Readings]:
        """The next ``samples`` samples of each well, in blocks, sorted by sample and then by well. A well that is
        silent (the fault ``stale``) has no rows. A signal without a value is NaN."""
        while samples > 0:
            if not self._pending:
                self._pending = self._block()
            block = self._pending[: max(1, samples)]
            del self._pending[: len(block)]
            samples -= len(block)
            yield stacked(block)

    def _block(self) -> list[Readings]:
        """One block, cut into samples. It is always generated as a whole, so that the random numbers do not depend
        on how many samples are asked for."""
        n, wells = self._block_samples, len(self.wells)
        seconds: FloatArray = np.arange(self._samples, self._samples + n, dtype=np.float64) * self._interval_seconds
        conditions, silent, effects = self._conditions(seconds)
        values = self._physics(seconds, conditions)
        self._report(values, effects)
        values += 0.0  # no minus zero
        index = np.arange(wells, dtype=np.int32)
        block = []
        for at in range(n):
            stamp = self._start_us + (self._samples + at) * self._interval_us + self._phase_us
            sample = Readings(self.wells, index, stamp, stamp, np.ascontiguousarray(values[:, at, :]))
            block.append(sample.select(np.flatnonzero(~silent[at])) if silent[at].any() else sample)
        self._samples += n
        return block

    def _wander_block(self, n: int) -> FloatArray:
        """Slow random variations (channels, samples, wells) with a spread of 1, bounded. They are the exact
        discretisation of the process at this interval."""
        keep = np.exp(-self._interval_seconds / np.array([seconds for _, seconds in _WANDER.values()]))[:, None]
        shocks = self._random.standard_normal((n, len(_WANDER), len(self.wells))) * np.sqrt(1 - keep**2)
        state = self._wander
        for at in range(n):
            state *= keep
            state += shocks[at]
            shocks[at] = state
        bounded = _BOUND * np.tanh(shocks / _BOUND)
        spreads = np.array([spread for spread, _ in _WANDER.values()])[:, None]
        scaled: FloatArray = (bounded * spreads).transpose(1, 0, 2)
        return scaled

    def _physics(self, seconds: FloatArray, c: _Conditions) -> FloatArray:
        """The true values of the signals: (signals, samples, wells)."""
        wander = dict(zip(_WANDER, self._wander_block(len(seconds)), strict=True))
        running = c.speed > 0
        frequency = (self._f0 + wander["frequency"]) * c.speed
        r = frequency / self._f0
        gor = self._gor0 * (1 + wander["gor"]) * c.gas
        head = c.head * (1 + wander["head"] - 0.03 * (gor / self._gor0 - 1).clip(-0.5, 0.5))
        reservoir = self._pip0 + _DRAWDOWN * (1 + wander["reservoir"])
        # The balance of inflow, pump and outflow, solved for the rate.
        drive = reservoir + head * r**2 * self._shut_in - self._static
        a, b = self._pump_loss + self._friction, 1 / self._productivity
        pump_rate = (-b + np.sqrt(b**2 + 4 * a * drive.clip(0))) / (2 * a) * running * c.valve
        drawn = pump_rate * (1 - c.leak)  # what leaves the annulus
        pump_rate, surface_rate = pump_rate * c.rate, drawn * c.rate
        load = _NO_LOAD + (1 - _NO_LOAD) * pump_rate / np.maximum(r * self._q0, 1e-9)
        current = self._amps0 * r**2 * load * (1 + wander["load"]) * c.load * running
        cooling = _STILL_COOLING + (1 - _STILL_COOLING) * (pump_rate / self._q0).clip(0, 1.2) ** 0.6
        rise = (self._temp0 - _AMBIENT) * (current / self._amps0) ** 2 / cooling
        targets = np.stack([reservoir - drawn / self._productivity, _AMBIENT + rise + c.heat])
        pip, winding = self._lag(targets)
        pip *= c.inflow
        lift = head * r**2 * self._shut_in - self._pump_loss * pump_rate**2
        discharge = np.where(running, pip + lift.clip(0), np.minimum(pip, self._static))
        flowing = 0.9 + 0.1 * surface_rate / self._q0
        day = np.sin(seconds * (2 * np.pi / 86_400))[:, None] * np.cos(self._phase)
        vibration = self._vibration0 * r**2 * (1 + wander["vibration"]) * (0.5 + 0.5 * load) + c.shake * running

        values = np.full((len(SIGNALS), len(seconds), len(self.wells)), np.nan)  # a signal without physics is not sent
        for name, signal in {
            "flow_rate": surface_rate,
            "pip": pip,
            "motor_current": current,
            "motor_temp": winding,
            "vibration": vibration,
            "vsd_frequency": frequency,
            "gor": gor,
            "discharge_pressure": discharge,
            "wellhead_pressure": _WELLHEAD * (1 + wander["wellhead"]) * flowing,
            "casing_pressure": _CASING * (1 + wander["wellhead"] / 2) + 2 * day,
            "intake_temp": _AMBIENT + 0.5 * day,
            "leakage_current": np.full_like(pip, 0.2),
            "drive_voltage": frequency * _VOLTS_PER_HERTZ,
        }.items():
            values[SIGNAL_ROW[name]] = signal
        return values

    def _lag(self, targets: FloatArray) -> FloatArray:
        """The delayed response of intake pressure and winding temperature: (2, samples, wells), first order."""
        seconds = np.array([_STORAGE_SECONDS, _THERMAL_SECONDS])[:, None]
        share = 1 - np.exp(-self._interval_seconds / seconds)
        out = np.empty_like(targets)
        state = self._lagged
        for at in range(targets.shape[1]):
            state += (targets[:, at] - state) * share
            out[:, at] = state
        return out

    def _report(self, values: FloatArray, effects: "_GaugeEffects") -> None:
        """What the instruments report of the true values: noise, limited resolution, and the faults of the gauges.
        Changes the values in place."""
        stopped = values[SIGNAL_ROW["vsd_frequency"]] == 0
        for name, (spread, decimals) in _NOISE.items():
            signal = values[SIGNAL_ROW[name]]
            noise = self._random.standard_normal(signal.shape).clip(-_BOUND, _BOUND) * spread
            if name in ("flow_rate", "motor_current", "vsd_frequency", "drive_voltage", "vibration"):
                noise *= ~stopped & (signal > spread)
            np.round((signal + noise).clip(0), decimals, out=signal)
        for well, rows in effects.dropouts:
            for name in _GAUGE:
                values[SIGNAL_ROW[name], rows, well] = 0.0
        pip = values[SIGNAL_ROW["pip"]]
        for well, rows in effects.frozen:
            if well not in self._frozen:
                self._frozen[well] = pip[rows[0], well].copy()
            pip[rows, well] = self._frozen[well]

    # -- Faults

    def _conditions(self, seconds: FloatArray) -> "tuple[_Conditions, npt.NDArray[np.bool_], _GaugeEffects]":
        shape = (len(seconds), len(self.wells))
        c = _Conditions(*(np.ones(shape) for _ in range(10)))
        c.leak, c.heat, c.shake = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        silent = np.zeros(shape, np.bool_)
        effects = _GaugeEffects([], [])
        for fault in self.faults:
            for well in range(len(self.wells)) if fault.well is None else [fault.well]:
                since = seconds + self._phase_us[well] / 1e6 - fault.after_seconds
                rows = np.flatnonzero((since >= 0) & (since < fault.duration_seconds))
                if len(rows):
                    self._apply(fault.name, c, silent, effects, well, rows, since[rows])
        return c, silent, effects

    def _apply(
        self,
        name: FaultName,
        c: _Conditions,
        silent: npt.NDArray[np.bool_],
        effects: "_GaugeEffects",
        well: int,
        rows: npt.NDArray[np.intp],
        t: FloatArray,
    ) -> None:
        """Apply a fault. ``t``: seconds since it began, at ``rows`` of one well. docs/simulator.md describes what
        each fault does."""
        at = (rows, well)
        if name == FaultName.GAS_LOCK:
            onset = _ramp(t, 120)
            hunting = np.sin(t * (2 * np.pi / 97)) + 0.6 * np.sin(t * (2 * np.pi / 41))
            c.head[at] *= 1 - onset * (0.78 + 0.04 * hunting)
            c.load[at] *= 1 - onset * (0.22 + 0.05 * hunting)
            c.gas[at] *= 1 + 0.6 * onset
        elif name == FaultName.PUMP_OFF:
            onset = _ramp(t, 600)
            c.inflow[at] *= np.maximum(0.12, np.exp(-t / 3_600 * 0.35))
            c.rate[at] *= 1 - onset * 0.1 - 0.3 * _ramp(t, 4 * 3_600)
            c.load[at] *= 1 - onset * 0.2
        elif name == FaultName.BROKEN_SHAFT:
            c.head[at] = 0.0
            c.load[at] *= 0.65  # of the 0.65 that a pump at no flow draws: 0.42
        elif name == FaultName.DEAD_HEAD:
            c.valve[at] *= 1 - _ramp(t, 30)
        elif name == FaultName.TUBING_LEAK:
            c.leak[at] = 0.32 * _ramp(t, 300)
        elif name == FaultName.OVERLOAD:
            c.load[at] *= 1 + 0.45 * _ramp(t, 20)
        elif name == FaultName.MOTOR_HOT:
            c.heat[at] += 150 * _ramp(t, 300)
        elif name == FaultName.VIBRATION:
            c.shake[at] += 0.75 * _ramp(t, 120)
        elif name == FaultName.FROZEN_SIGNAL:
            effects.frozen.append((well, rows))
        elif name == FaultName.GAUGE_DROPOUT:
            hour = np.floor(t / 3_600)
            before = np.floor((t - self._interval_seconds) / 3_600)
            effects.dropouts.append((well, rows[hour != before]))
        elif name == FaultName.TRIP:
            c.speed[at] *= np.where(t < 3_600, 0.0, _ramp(t - 3_600, 60).clip(0.2))
        elif name == FaultName.STALE:
            silent[at] = True


@dataclass(slots=True)
class _GaugeEffects:
    """(well, sample rows in the block) at which the downhole gauge reads 0, or its intake pressure stands still."""

    dropouts: list[tuple[int, npt.NDArray[np.intp]]]
    frozen: list[tuple[int, npt.NDArray[np.intp]]]


def _ramp(t: FloatArray, seconds: float) -> FloatArray:
    return np.clip(t / seconds, 0.0, 1.0)
