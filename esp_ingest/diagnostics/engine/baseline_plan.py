"""What a batch makes of the baselines, computed whole before any state is written."""

from dataclasses import dataclass, field

from esp_ingest.diagnostics.engine.buckets import Slots
from esp_ingest.diagnostics.engine.own_days import OwnPlan
from esp_ingest.diagnostics.engine.slow_trends import SlowPlan
from esp_ingest.diagnostics.engine.speed_steps import HalfHours, SpeedStep
from esp_ingest.diagnostics.language.evaluation import BoolArray
from esp_ingest.model import FloatArray, IntArray


@dataclass(slots=True)
class Plan:
    """What a batch makes of the baselines. ``features`` (features, runs) as they stand during each run."""

    sums: FloatArray
    counts: IntArray
    squares: FloatArray
    pace: IntArray
    features: FloatArray
    closed_sums: FloatArray = field(init=False)
    closed_counts: IntArray = field(init=False)
    closed_squares: FloatArray = field(init=False)
    means: FloatArray = field(init=False)
    mean_dt: FloatArray = field(init=False)
    half_sum: FloatArray | None = None  # (medians, wells with closings), and so half_n
    half_n: IntArray | None = None
    pushes: "Pushes | None" = None
    half_hours: tuple[Slots, IntArray, IntArray] | None = (
        None  # that end: slot, end, and time of the reading that tells
    )
    halves: HalfHours | None = None  # the same, with their means
    held: tuple[Slots, IntArray] | None = None  # by well with half-hours that end: slot and how many were held
    cut_us: int | None = None  # the batch has to be cut here
    own: OwnPlan | None = None
    slow: SlowPlan | None = None


@dataclass(slots=True)
class Pushes:
    """Half-hours that are over, each pushed into the running medians. By push: the closing ``at`` which it happens, its
    well, the run before which it happens, its number among the well's pushes so far, its means (medians, pushes); its
    place among all half-hours of the batch, and whether it is learned in part only."""

    at: Slots
    well: Slots
    run: Slots
    number: IntArray
    means: FloatArray
    time_us: IntArray
    half: Slots
    partly: BoolArray
    days: FloatArray | None = None  # (habits, 7, wells of the batch), if a day ended
    steps: list[SpeedStep] = field(default_factory=list)
