"""The types that all parts share: signals, deliveries, readings in columns, rejects.

Everything above imports from here and nothing here imports from above. Times are integers, microseconds since the
Unix epoch in UTC (``*_us``): exact, and the unit of PostgreSQL's timestamptz.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at_us(us: int) -> datetime:
    """Microseconds since the epoch as an exact datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def us_of(at: datetime) -> int:
    """The opposite of :func:`at_us`, exact too. ``at`` has a zone."""
    return (at - _EPOCH) // timedelta(microseconds=1)


class Signal(NamedTuple):
    """One measured quantity; outside ``low`` … ``high`` the instrument is wrong, not the well."""

    name: str
    unit: str
    low: float
    high: float
    description: str


MIN_FREQUENCY_HZ = 5.0  # a pump whose drive is not faster than this stands still


def stands_still(frequency_hz: float | None, current_a: float | None) -> bool:
    """Whether a reading shows a pump that is stopped, by its frequency or its current; None: not sent."""
    return (frequency_hz is not None and frequency_hz <= MIN_FREQUENCY_HZ) or (current_a is not None and current_a <= 0)


# In the order of the table's columns. Limits: CONTRACT.md; configuration may change them, for all wells or for one.
SIGNALS: tuple[Signal, ...] = (
    Signal("flow_rate", "bbl/d", 0, 30_000, "liquid rate at surface"),
    Signal("pip", "psi", 0, 6_000, "pump intake pressure"),
    Signal("motor_current", "A", 0, 500, "motor current"),
    Signal("motor_temp", "°F", 32, 572, "motor winding temperature"),
    Signal("vibration", "in/s", 0, 10, "pump vibration, velocity"),
    Signal("vsd_frequency", "Hz", 0, 90, "output frequency of the variable speed drive"),
    Signal("gor", "scf/bbl", 0, 50_000, "gas-oil ratio"),
    Signal("discharge_pressure", "psi", 0, 10_000, "pump discharge pressure"),
    Signal("wellhead_pressure", "psi", 0, 10_000, "tubing pressure at the wellhead"),
    Signal("casing_pressure", "psi", 0, 10_000, "casing pressure at the wellhead"),
    Signal("intake_temp", "°F", 32, 572, "fluid temperature at the pump intake"),
    Signal("leakage_current", "mA", 0, 100, "leakage current to earth"),
    Signal("drive_voltage", "V", 0, 6_000, "output voltage of the drive"),
)
SIGNAL_NAMES: tuple[str, ...] = tuple(signal.name for signal in SIGNALS)
SIGNAL_ROW: dict[str, int] = {name: row for row, name in enumerate(SIGNAL_NAMES)}


class RejectReason(StrEnum):
    """Why something cannot be a reading: a closed list, so that it can be a metric's label and an operator's filter."""

    INVALID_TOPIC = "invalid_topic"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    EMPTY_PAYLOAD = "empty_payload"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    TOO_DEEP = "too_deep"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_TIMESTAMP = "missing_timestamp"
    INVALID_TIMESTAMP = "invalid_timestamp"
    TIMESTAMP_AHEAD = "timestamp_ahead"
    TIMESTAMP_TOO_OLD = "timestamp_too_old"
    WELL_ID_MISMATCH = "well_id_mismatch"
    WRONG_TYPE = "wrong_type"
    NO_SIGNAL = "no_signal"
    UNSTORABLE_TEXT = "unstorable_text"
    REFUSED_BY_DATABASE = "refused_by_database"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"
    INTERNAL_ERROR = "internal_error"


class Unusable(StrEnum):
    """Why a declared signal's value is not stored in its column: a closed list, as it is a metric's label."""

    OUT_OF_RANGE = "out_of_range"
    NOT_FINITE = "not_finite"
    STRING = "string"
    BOOLEAN = "boolean"
    ARRAY = "array"
    OBJECT = "object"


class Delivery(NamedTuple):
    """One message as it arrived. ``topic`` is raw bytes: a topic need not be valid UTF-8 to be stored as a reject.

    ``connection`` is the connection that delivered it, a number that no other has and that grows (-1: not known), and
    ``packet_id`` its packet id (0 at QoS 0): an acknowledgement is only ever sent to the connection it belongs to.
    ``redelivered`` is 0 without MQTT's DUP flag; with it, the oldest connection that may have brought the message
    before under this packet id (1, which is True: any).
    """

    topic: bytes
    payload: bytes
    qos: int
    packet_id: int
    connection: int
    received_us: int
    redelivered: int = 0


class Arrival(NamedTuple):
    """What one write settles: so many ``messages``, the last of them from ``connection`` (-1: not known)."""

    connection: int = -1
    messages: int = 0


NOTHING_ARRIVED = Arrival()


LONG_TOPIC_BYTES = 255  # a topic of ours is shorter; one of up to 64 KiB counts as the payload does


def weight_of(delivery: Delivery) -> int:
    """Bytes that a message is counted with, wherever memory is bounded by bytes."""
    topic_bytes = len(delivery.topic)
    return len(delivery.payload) + (topic_bytes if topic_bytes > LONG_TOPIC_BYTES else 0)


_CUT_MARK = re.compile(rb"\xff\n\[esp-ingest: cut off here, (\d{1,20}) bytes were sent\]\Z")


def cut_off(head: bytes, whole_bytes: int) -> bytes:
    """The payload of a message too large to be held: its first bytes and a mark. The mark is in the payload so that it
    stays with it in the spool and in a replay; 0xFF is in no UTF-8 text, so nobody takes what is left for a reading."""
    return head + b"\xff\n[esp-ingest: cut off here, %d bytes were sent]" % whole_bytes


def whole_bytes_of(payload: bytes) -> int | None:
    """How many bytes were sent of a payload that :func:`cut_off` made; None for any other."""
    found = _CUT_MARK.search(payload[-80:])
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Reject:
    """Something received that cannot be a reading, kept byte for byte. ``item`` is its place in an array, else 0.

    ``payload`` is the whole message for a message-level reject; for one bad item of an array it is that item's bytes
    where they can be told apart, else the item re-encoded. ``redelivered``, ``connection`` and ``packet_id`` are the
    message's, as in Delivery: store/write/redelivery.py tells by them whether it is stored already.
    """

    received_us: int
    topic: bytes
    reason: RejectReason
    detail: str
    payload: bytes
    item: int = 0
    redelivered: int = 0
    connection: int = -1
    packet_id: int = 0


class Wells(list[str]):
    """Names of wells, and the numbers that their decoder has given them: ``numbers`` (n,) are places in ``register``,
    the names by number. Whoever knows something of a well finds it by the number (:class:`PlacesByNumber`), many times
    faster than by name where there are many wells. A list that is made of this one has no numbers."""

    __slots__ = ("numbers", "register")

    def __init__(self, names: Iterable[str], numbers: npt.NDArray[np.intp], register: list[str]) -> None:
        super().__init__(names)
        self.numbers = numbers
        self.register = register


class PlacesByNumber:
    """Where wells stand in somebody's arrays, by number: a cache before a dictionary of names, which forgets all when
    the decoder begins another register."""

    def __init__(self) -> None:
        self._register: list[str] | None = None
        self._places = np.empty(0, np.intp)

    def of(self, wells: Sequence[str]) -> npt.NDArray[np.intp] | None:
        """The place of each of ``wells``, (n,); None where one has none here, or they have no numbers."""
        if not isinstance(wells, Wells) or not wells or wells.register is not self._register:
            return None
        if wells.numbers.max() >= self._places.shape[0]:
            return None
        places = self._places[wells.numbers]
        return places if places.min() >= 0 else None

    def keep(
        self, wells: Sequence[str], places: npt.NDArray[np.intp], at: npt.NDArray[np.integer] | None = None
    ) -> None:
        """From now on these are the ``places`` of ``wells``, or of those of them that stand ``at`` there."""
        if not isinstance(wells, Wells):
            return
        if wells.register is not self._register:
            self._register, self._places = wells.register, np.empty(0, np.intp)
        if (more := len(wells.register) - self._places.shape[0]) > 0:
            self._places = np.append(self._places, np.full(more + len(wells.register) // 2, -1, np.intp))
        self._places[wells.numbers if at is None else wells.numbers[at]] = places

    def forget(self) -> None:
        """Some places are no longer right."""
        self._register = None


@dataclass(slots=True)
class Readings:
    """n readings as columns, in the order received.

    Shapes: ``well_index`` (n,) indexes ``wells``; ``timestamp_us`` and ``received_us`` (n,) int64;
    ``values`` (len(SIGNALS), n) float64, one contiguous row a signal, NaN where there is no value (stored as NULL).
    ``extra`` and ``quality`` map a reading's index to a JSON object as text, only where there is one.
    """

    wells: list[str]
    well_index: npt.NDArray[np.int32]
    timestamp_us: IntArray
    received_us: IntArray
    values: FloatArray
    extra: dict[int, str] = field(default_factory=dict)
    quality: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.timestamp_us.shape[0])

    def well_of(self, row: int) -> str:
        """The well of the reading at ``row``."""
        return self.wells[int(self.well_index[row])]

    def select(self, rows: npt.NDArray[np.intp]) -> "Readings":
        """The readings at ``rows``, in that order. ``wells`` is shared, not compacted."""
        place = {int(row): at for at, row in enumerate(rows)} if self.extra or self.quality else {}
        return Readings(
            wells=self.wells,
            well_index=self.well_index[rows],
            timestamp_us=self.timestamp_us[rows],
            received_us=self.received_us[rows],
            values=np.ascontiguousarray(self.values[:, rows]),
            extra={place[row]: text for row, text in self.extra.items() if row in place},
            quality={place[row]: text for row, text in self.quality.items() if row in place},
        )

    @staticmethod
    def empty() -> "Readings":
        """No readings."""
        return Readings(
            wells=[],
            well_index=np.empty(0, np.int32),
            timestamp_us=np.empty(0, np.int64),
            received_us=np.empty(0, np.int64),
            values=np.empty((len(SIGNALS), 0), np.float64),
        )


@dataclass(slots=True)
class Decoded:
    """What a list of deliveries turned into. Every item received is a reading or a reject: ``items`` is their sum.

    ``out_of_range`` counts numbers outside their hard limits, NaN and infinities included, by signal, and ``unusable``
    everything that leaves a declared signal NULL, by signal and kind; both are for metrics.
    """

    readings: Readings
    rejects: list[Reject]
    out_of_range: dict[str, int] = field(default_factory=dict)
    unusable: dict[tuple[str, Unusable], int] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Readings and rejects together."""
        return len(self.readings) + len(self.rejects)


class Severity(StrEnum):
    """Of an occurrence, the most severe first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class DiagnosticRow:
    """The present state of one occurrence, keyed by (well_id, diagnosis, raised_us): a row of diagnostic_results.

    Written with INSERT … ON CONFLICT (key) DO UPDATE, so that writing it again changes nothing.
    ``actions_json`` and ``snapshot_json`` are JSON texts; ``cleared_us`` is None while the occurrence is open.
    ``reminded``: it is told again, so that an acknowledgement counts no more and it is published; no column.
    ``is_false``: as it is read back, an operator's last verdict is that it is false; no column of this table.
    """

    well_id: str
    diagnosis: str
    raised_us: int
    severity: Severity
    state: str
    cleared_us: int | None
    value: float | None
    threshold: float | None
    peak: float | None
    occurrences: int
    confidence: float | None
    message: str
    actions_json: str
    snapshot_json: str
    reminded: bool = field(default=False, compare=False)
    is_false: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the rules remember of one well: a row of diagnostic_state. ``event_us`` is its newest reading; ``state`` is
    opaque to all but the engine; ``off_json`` maps rules that cannot run at this well to the reason."""

    well_id: str
    event_us: int
    state: bytes
    off_json: str = "{}"


@dataclass(frozen=True, slots=True)
class AlarmAction:
    """What an operator did: a row of alarm_actions. ``action``: ack, shelve, unshelve, note or verdict;
    ``until_us``: the end of a shelving; ``verdict``: true, false or unclear."""

    id: int
    well_id: str
    diagnosis: str
    action: str
    raised_us: int | None = None
    until_us: int | None = None
    verdict: str | None = None


class Change(NamedTuple):
    """An occurrence as it was after a change, a JSON object. A later change has a higher revision. ``refusals``: how
    often the broker has refused it."""

    revision: int
    well_id: str
    payload: str
    refusals: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a publication: ``refusal`` says why the broker did not take it, "" if it has. ``is_of_message``:
    it is the message that is refused, not its topic, so that another of the same topic may pass."""

    refusal: str = ""
    is_of_message: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended that had been accepted: ``unanswered`` were under way. ``blame`` is the broker's refusal
    of what was published, None if it said nothing; ``is_innocent``: it ended for a reason of its own."""

    reason: str
    unanswered: frozenset[int]
    blame: Answer | None = None
    is_innocent: bool = False
