"""``esp-ingest demo``: runs everything on this machine, and accounts for every message at the end.

Most wells replay a recorded day in fast motion, so that the rules know each well's habits before something happens
to it. Some wells report live, with broken, doubled, late and future messages among theirs. With ``--csv`` a
recording is replayed instead of both. At the end every published item must have been written, be a duplicate, or
have been rejected; otherwise the exit code is 1."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_ingest.config.settings import ENV_PREFIX
from esp_ingest.demo.processes import Processes, Simulator, Stored
from esp_ingest.demo.recording import EVENTFUL_SECONDS, Recording, write_recording
from esp_ingest.demo.screen import Picture, Screen, open_screen
from esp_ingest.demo.servers import last_line
from esp_ingest.demo.stop import Stop
from esp_ingest.service.clock import SystemClock
from esp_ingest.telemetry import csv_recording as replay

_LOOK_SECONDS = 0.5
_LIVE_SHARE = 4  # one well in four reports live
_SETTLE_SECONDS = 20.0  # for the daemon to store the last of it
_LIVE_TROUBLE = ("--malformed", "0.02", "--duplicates", "0.02", "--late", "0.01", "--future", "0.01")
_ANY_AGE = {"ESP_INGEST_TELEMETRY__MAX_AGE_DAYS": "0"}  # a recording may be longer than a month
# Limits of equipment are never guessed, so somebody has to say what the simulated motors stand.
EQUIPMENT = """
[groups.demo]
wells = ["well-*", "sim-*"]
limits = { motor_current = "55 A", motor_temp = "300 °F" }
"""


@dataclass(frozen=True, slots=True)
class Totals:
    """What was published and what became of it. Items are readings and broken messages. ``diagnostics`` counts the
    occurrences that were raised, except those that another one explains."""

    published: int
    written: int
    duplicates: int
    rejected: int
    diagnostics: int

    @property
    def reconciled(self) -> bool:
        """Whether every published item was written, was a duplicate, or was rejected."""
        return self.published == self.written + self.duplicates + self.rejected

    def json(self) -> str:
        """The totals as one JSON object, for `--json`."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


def run_demo(arguments: argparse.Namespace) -> int:
    """The command. Reads duration (s), wells, rate (Hz), seed, csv and json from ``arguments``.

    Returns 0 when everything adds up, after Ctrl-C too; 1 otherwise. Raises EmbeddedError and ReplayError."""
    # One that cannot be used is found before anything starts.
    span_seconds = EVENTFUL_SECONDS if arguments.csv is None else replay.read(arguments.csv).span_us / 1e6
    clock = SystemClock()
    stop = Stop()
    started = clock.monotonic()
    ignored = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX))
    if ignored:
        _say(f"not used, as the demo brings its own settings: {', '.join(ignored)}")
    _say("starting PostgreSQL, an MQTT broker and the daemon, all in temporary folders")
    settings, more_rules = ({}, EQUIPMENT) if arguments.csv is None else (_ANY_AGE, "")
    # Fast motion ends at the present: until then the newest reading of a well that sends is up to the whole span old.
    settings = {**settings, "ESP_INGEST_API__SILENT_AFTER_SECONDS": f"{span_seconds + 900:.0f}"}
    processes = Processes(clock, settings, more_rules, arguments.config)
    with stop, processes:
        _say(f"  {_database(processes.schema_lines)}")
        console = processes.console
        _say(console.line() if console is not None else 'no console: pip install "esp-ingest[demo,api]" brings it')
        _say(f"ready after {clock.monotonic() - started:.1f} s")
        play = _Play(processes, clock, arguments, stop)
        play.run()
        totals, problem, diagnoses = _reckon(processes, play)
        _summary(totals, problem, play, diagnoses)
        if arguments.json:
            print(totals.json(), flush=True)
    return 1 if problem else 0


class _Play:
    """The traffic of one demo, and the screen that shows it."""

    def __init__(self, processes: Processes, clock: SystemClock, arguments: argparse.Namespace, stop: Stop) -> None:
        self._processes = processes
        self._clock = clock
        self._arguments = arguments
        self._stop = stop
        self._started = clock.monotonic()
        self._duration_seconds = max(float(arguments.duration), 1.0)
        self.published = 0
        self._recording: Recording | None = None
        self.last = Picture()

    def run(self) -> None:
        with open_screen() as screen:
            if self._arguments.csv is not None:
                self._replay(screen, self._arguments.csv)
            else:
                self._fleet(screen)
            self._settle(screen)

    def story(self) -> dict[str, str]:
        """Well → the fault that has begun at it: after Ctrl-C some have not."""
        return begun(self._recording, self.last) if self._recording is not None else {}

    def _elapsed(self) -> float:
        return self._clock.monotonic() - self._started

    def _left_seconds(self) -> float:
        return max(self._duration_seconds - self._elapsed(), 1.0)

    def _replay(self, screen: Screen, file: Path) -> None:
        span_seconds = replay.read(file).span_us / 1e6
        speed = span_seconds / self._left_seconds()
        doing = f"replaying {file.name}, {speed:.0f} times real time"
        self._watch(screen, doing, [self._simulate("recording", "--csv", str(file), "--speed", f"{speed:g}")])

    def _fleet(self, screen: Screen) -> None:
        live = max(self._arguments.wells // _LIVE_SHARE, 1)
        recorded = max(self._arguments.wells - live, 1)
        seed = self._arguments.seed
        end_us = self._clock.now_us() + round(self._duration_seconds * 1e6)
        recording = write_recording(self._processes.folder, recorded, seed, end_us)
        self._recording = recording
        calm = self._simulate("calm", "--csv", str(recording.calm), "--keep-timestamps", "--speed", "0")
        self._watch(screen, "a calm day, as fast as it goes", [calm])
        if self._stop.asked:
            return
        left = self._left_seconds()
        speed = EVENTFUL_SECONDS / left
        eventful = ("--csv", str(recording.eventful), "--keep-timestamps", "--speed", f"{speed:g}")
        fleet = ("--wells", str(live), "--rate", str(self._arguments.rate), "--duration", f"{left:g}")
        simulators = [
            self._simulate("eventful", *eventful),
            self._simulate("live", *fleet, "--seed", str(seed), *_LIVE_TROUBLE),
        ]
        doing = f"well-… in fast motion ({speed:.0f} times real time), sim-… live with broken messages"
        self._watch(screen, doing, simulators)

    def _simulate(self, name: str, *arguments: str) -> Simulator:
        return self._processes.start_simulator(name, arguments)

    def _watch(self, screen: Screen, doing: str, simulators: Sequence[Simulator]) -> None:
        """Show the demo until the simulators have ended, somebody asks to stop, or the time is long over. Then add
        up what they published."""
        while any(simulator.running for simulator in simulators) and not self._stop.asked:
            if self._processes.daemon_ended or self._elapsed() > self._duration_seconds + _SETTLE_SECONDS:
                break
            self._show(screen, doing)
            self._clock.sleep(_LOOK_SECONDS)
        self.published += sum(simulator.finish() for simulator in simulators)

    def _settle(self, screen: Screen) -> None:
        """Wait until the daemon has handled everything that was published."""
        deadline = self._clock.monotonic() + _SETTLE_SECONDS
        while True:
            picture = self._show(screen, "done" if not self._stop.asked else "stopping")
            done = picture.written + picture.duplicates + picture.rejected >= self.published and not picture.unacked
            if done or self._processes.daemon_ended or self._clock.monotonic() > deadline:
                return
            self._clock.sleep(0.1)

    def _show(self, screen: Screen, doing: str) -> Picture:
        picture = self._processes.look()
        picture.elapsed_seconds, picture.duration_seconds = self._elapsed(), self._duration_seconds
        picture.doing = doing
        screen.show(picture)
        self.last = picture
        return picture


def begun(recording: Recording, picture: Picture) -> dict[str, str]:
    """The faults that have begun, by well: those whose time the newest stored reading of the well has reached."""
    newest = {well.well_id: well.time.timestamp() * 1e6 for well in picture.wells}
    return {
        well: fault for well, fault in recording.faults.items() if newest.get(well, 0.0) >= recording.begin_us[well]
    }


_Diagnoses = list[tuple[str, str, int]]


def _reckon(processes: Processes, play: _Play) -> tuple[Totals, str, _Diagnoses]:
    """Stop the daemon, and compare what was published, what the daemon counted, and what the tables hold. The second
    value says what does not agree; it is empty if all agree."""
    status = processes.stop_daemon()
    stored = processes.stored()
    last = play.last
    diagnoses = processes.diagnoses()
    raised = sum(count for _, _, count in diagnoses)
    totals = Totals(play.published, last.written, last.duplicates, last.rejected, raised)
    return totals, _problem(totals, stored, status, processes), diagnoses


def _problem(totals: Totals, stored: Stored, status: int, processes: Processes) -> str:
    if status != 0:
        return f"the daemon ended with {status}: {last_line(processes.folder / 'daemon.log')}"
    if not totals.reconciled:
        missing = totals.published - totals.written - totals.duplicates - totals.rejected
        return f"{missing} of {totals.published} published items are unaccounted for"
    if (stored.readings, stored.rejects) != (totals.written, totals.rejected):
        return f"the tables hold {stored.readings} readings and {stored.rejects} rejects, which is not what was counted"
    return ""


def _summary(totals: Totals, problem: str, play: _Play, diagnoses: _Diagnoses) -> None:
    _say("")
    _say(
        f"published {totals.published} = {totals.written} written + {totals.duplicates} duplicates + "
        f"{totals.rejected} rejected" + ("" if totals.reconciled else "  DOES NOT ADD UP")
    )
    if play.last.reasons:
        _say("rejected: " + ", ".join(f"{count} {reason}" for reason, count in play.last.reasons.most_common()))
    if story := play.story():
        _say("simulated: " + ", ".join(f"{fault} at {well}" for well, fault in story.items()))
    named = [f"{diagnosis} ({severity}) {count}" for diagnosis, severity, count in diagnoses]
    _say(f"diagnosed: {totals.diagnostics} = " + " + ".join(named) if named else "diagnosed: nothing")
    if named:
        _say("  (those explained by another one are left out; the severity is the highest reached)")
    _say(f"problem: {problem}." if problem else "Everything adds up, and nothing is left running.")


def _database(lines: list[str]) -> str:
    """The database of the demo in one line, of what the migration says."""
    server = next((line for line in lines if line.startswith("PostgreSQL")), "PostgreSQL")
    plain = any(line.startswith("cannot: hypertables") for line in lines)
    return f"{server}{' without TimescaleDB' if plain else ''}, fsync off: for the demo only"


def _say(text: str) -> None:
    print(text, flush=True)
