"""What the demo shows while it runs: a live table on a terminal, or else a line every few seconds."""

import sys
from abc import ABC, abstractmethod
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from esp_ingest.model import stands_still

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN_SECONDS = 5.0
_BAR_WIDTH = 30
_GAP = 2  # between two columns
_TIME = "%d %b %H:%M:%S"
_TIME_WIDTH = 16  # of its heading, which is longer than it
_LONGEST_DIAGNOSES = 40  # more of them are cut
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
    """A row of the table. ``values`` are in the order of SHOWN, None if there is no value."""

    well_id: str
    time: datetime
    values: tuple[float | None, ...]

    @property
    def is_stopped(self) -> bool:
        """Whether its motor stands still, judged by frequency or current."""
        shown = dict(zip(SHOWN, self.values, strict=True))
        return stands_still(shown["vsd_frequency"], shown["motor_current"])


@dataclass(frozen=True, slots=True)
class Alarm:
    """An open alarm. ``severity`` is one of the keys of _COLOURS."""

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
        """The counters in one line, for people."""
        why = f" ({', '.join(f'{n} {reason}' for reason, n in self.reasons.most_common())})" if self.reasons else ""
        return (
            f"{_grouped(self.written)} written ({self.rate:.0f}/s), {_grouped(self.duplicates)} duplicates, "
            f"{_grouped(self.rejected)} rejected{why}, {_grouped(self.unacked)} unacknowledged, "
            f"lag {self.lag_seconds * 1e3:.0f} ms"
        )

    def share(self) -> float:
        """How much of the planned time is over, from 0 to 1."""
        return min(self.elapsed_seconds / self.duration_seconds, 1.0) if self.duration_seconds else 1.0


class Screen(ABC):
    """Where a demo is seen. For a with-statement, which closes it."""

    @abstractmethod
    def show(self, picture: Picture) -> None:
        """Show what is there now, in place of what was shown before or below it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def open_screen() -> Screen:
    """The live table on a terminal, or else plain lines."""
    return LiveScreen() if sys.stdout.isatty() else PlainScreen(lambda text: print(text, flush=True))


class PlainScreen(Screen):
    """For logs and pipes: a line every few seconds of the demo's own time, and a line for each new alarm."""

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


class LiveScreen(Screen):
    """A table on the terminal that is drawn again in place."""

    def __init__(self, console: "Console | None" = None) -> None:
        from rich.live import Live

        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def show(self, picture: Picture) -> None:
        from rich.console import Group
        from rich.text import Text

        width, height = self._live.console.size
        done = round(picture.share() * _BAR_WIDTH)
        bar = Text.assemble(
            ("━" * done, "green"),
            ("━" * (_BAR_WIDTH - done), "dim"),
            f" {picture.elapsed_seconds:.0f}/{picture.duration_seconds:.0f} s  {picture.doing}",
            no_wrap=True,
            overflow="ellipsis",
        )
        lines = [Text(picture.counts()), bar]
        if picture.trouble:
            lines.append(Text(picture.trouble, style="bold red"))
        taken = sum(1 if line.no_wrap else len(line.wrap(self._live.console, width)) for line in lines)
        layout = fit(picture, width, height - taken - 1)  # the cursor stands on a line of its own
        if layout.left_out:
            lines.insert(0, Text(f"… and {layout.left_out} more", style="dim"))
        self._live.update(Group(_table(picture, layout), *lines), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


@dataclass(frozen=True, slots=True)
class Layout:
    """What fits on the terminal: how many columns of SHOWN, from the left, the widths of names and diagnoses, and
    which wells."""

    columns: int
    name_width: int
    diagnoses_width: int
    wells: tuple[Well, ...]
    left_out: int


def fit(picture: Picture, width: int, height: int) -> Layout:
    """The layout for ``width`` characters and ``height`` lines, the heading included. Names and diagnoses stay,
    numbers are left out first. If there are too many wells, those with a diagnosis stay."""
    names = max([len(well.well_id) for well in picture.wells], default=0)
    name_width = max(min(names, max(12, width // 4)), len("well"))
    said = max([len(diagnoses_of(picture, well)) for well in picture.wells], default=0)
    left = width - name_width - _GAP - _TIME_WIDTH - _GAP
    diagnoses_width = min(max(said, len("active diagnoses")), _LONGEST_DIAGNOSES, max(left, 1))
    left -= diagnoses_width
    columns = 0
    for heading, _ in SHOWN.values():
        left -= len(heading) + _GAP
        if left < 0:
            break
        columns += 1
    wells = tuple(picture.wells)
    rows = max(height - 1, 1)
    if len(wells) > rows:
        rows = max(rows - 1, 1)  # the line that says how many are left out
        ill = {alarm.well_id for alarm in picture.alarms}
        chosen = sorted(range(len(wells)), key=lambda at: (wells[at].well_id not in ill, at))[:rows]
        wells = tuple(wells[at] for at in sorted(chosen))
    return Layout(columns, name_width, diagnoses_width, wells, len(picture.wells) - len(wells))


def shortened(name: str, width: int) -> str:
    """A name cut in the middle, because the names of wells in one field begin alike and differ at the end."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    tail = width - 1 - head
    return f"{name[:head]}…{name[len(name) - tail :]}"


def diagnoses_of(picture: Picture, well: Well) -> str:
    """What the line of a well says is wrong with it."""
    named = [alarm.diagnosis for alarm in picture.alarms if alarm.well_id == well.well_id]
    return ", ".join(["stopped", *named] if well.is_stopped else named)


def _table(picture: Picture, layout: Layout) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("well", no_wrap=True)
    table.add_column("reading of (UTC)", no_wrap=True)
    for heading, _ in list(SHOWN.values())[: layout.columns]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("active diagnoses", no_wrap=True, overflow="ellipsis", width=layout.diagnoses_width)
    for well in layout.wells:
        alarms = [alarm for alarm in picture.alarms if alarm.well_id == well.well_id]
        said = [Text("stopped", style="dim")] if well.is_stopped else []
        said += [Text(alarm.diagnosis, style=_COLOURS.get(alarm.severity, "")) for alarm in alarms]
        named = Text(", ").join(said)
        name = shortened(well.well_id, layout.name_width)
        table.add_row(name, f"{well.time.astimezone(UTC):{_TIME}}", *cells(well)[: layout.columns], named)
    return table


def cells(well: Well) -> list[str]:
    """The values of a row as text; a dash for a value that the reading does not have."""
    return [
        "–" if value is None else f"{value:.{decimals}f}"
        for value, (_, decimals) in zip(well.values, SHOWN.values(), strict=True)
    ]


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
