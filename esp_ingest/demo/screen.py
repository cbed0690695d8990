"""What the demo shows while it runs: a live table on a terminal, a line every few seconds elsewhere."""

import sys
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.table import Table

_PLAIN_SECONDS = 5.0
_BAR_WIDTH = 30
_COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}

# Column of well_latest → heading, decimals.
SHOWN = {
    "flow_rate": ("flow bbl/d", 0),
    "pip": ("pip psi", 0),
    "motor_current": ("current A", 1),
    "motor_temp": ("motor °F", 0),
    "vibration": ("vib in/s", 2),
    "vsd_frequency": ("VSD Hz", 1),
}


@dataclass(frozen=True, slots=True)
class Well:
    """A row of the table. ``values`` are in the order of SHOWN, None where there is no value."""

    well_id: str
    time: datetime
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    well_id: str
    diagnosis: str
    severity: str
    message: str


@dataclass(slots=True)
class Picture:
    """One look at the running demo: wells and alarms from the database, counters from /metrics."""

    elapsed_seconds: float = 0.0
    duration_seconds: float = 0.0
    doing: str = ""
    wells: Sequence[Well] = ()
    alarms: Sequence[Alarm] = ()
    received: int = 0
    written: int = 0
    duplicates: int = 0
    rejected: int = 0
    raised: int = 0
    unacked: int = 0
    rate: float = 0.0  # readings written a second, of late
    lag_seconds: float = 0.0  # received to committed, mean of late
    trouble: str = ""
    reasons: Tally[str] = field(default_factory=Tally)

    def counts(self) -> str:
        why = f" ({', '.join(f'{n} {reason}' for reason, n in self.reasons.most_common())})" if self.reasons else ""
        return (
            f"{_grouped(self.written)} written ({self.rate:.0f}/s), {_grouped(self.duplicates)} duplicates, "
            f"{_grouped(self.rejected)} rejected{why}, {_grouped(self.unacked)} unacknowledged, "
            f"lag {self.lag_seconds * 1e3:.0f} ms"
        )

    def share(self) -> float:
        return min(self.elapsed_seconds / self.duration_seconds, 1.0) if self.duration_seconds else 1.0


class Screen(Protocol):
    def show(self, picture: Picture) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_screen() -> Screen:
    """The live table on a terminal, plain lines elsewhere."""
    return LiveScreen() if sys.stdout.isatty() else PlainScreen(lambda text: print(text, flush=True))


class PlainScreen:
    """A line each few seconds of the demo's own time, for logs and pipes, and one for each new alarm."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._next_seconds = 0.0
        self._known: set[tuple[str, str]] = set()

    def show(self, picture: Picture) -> None:
        for alarm in picture.alarms:
            if (alarm.well_id, alarm.diagnosis) not in self._known:
                self._say(f"  {alarm.severity:<8} {alarm.well_id} {alarm.diagnosis}: {alarm.message}")
        self._known = {(alarm.well_id, alarm.diagnosis) for alarm in picture.alarms}
        if picture.elapsed_seconds >= self._next_seconds:
            self._next_seconds = picture.elapsed_seconds + _PLAIN_SECONDS
            trouble = f"; {picture.trouble}" if picture.trouble else ""
            self._say(f"  {picture.elapsed_seconds:3.0f} s {picture.doing}: {picture.counts()}{trouble}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveScreen:
    """A table that is drawn again in place."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(refresh_per_second=4, transient=False)

    def show(self, picture: Picture) -> None:
        from rich.console import Group
        from rich.text import Text

        done = round(picture.share() * _BAR_WIDTH)
        bar = Text.assemble(
            ("━" * done, "green"),
            ("━" * (_BAR_WIDTH - done), "dim"),
            f" {picture.elapsed_seconds:.0f}/{picture.duration_seconds:.0f} s  {picture.doing}",
        )
        lines = [Text(picture.counts()), bar]
        if picture.trouble:
            lines.append(Text(picture.trouble, style="bold red"))
        self._live.update(Group(_table(picture), *lines), refresh=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def _table(picture: Picture) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("well", no_wrap=True)
    table.add_column("reading of (UTC)", no_wrap=True)
    for heading, _ in SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("active diagnoses", ratio=1)
    for well in picture.wells:
        alarms = [alarm for alarm in picture.alarms if alarm.well_id == well.well_id]
        named = Text(", ").join(Text(alarm.diagnosis, style=_COLOURS.get(alarm.severity, "")) for alarm in alarms)
        table.add_row(well.well_id, f"{well.time.astimezone(UTC):%d %b %H:%M:%S}", *cells(well), named)
    return table


def cells(well: Well) -> list[str]:
    """The values of a row as text; a dash where the reading had none."""
    return [
        "–" if value is None else f"{value:.{decimals}f}"
        for value, (_, decimals) in zip(well.values, SHOWN.values(), strict=True)
    ]


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
