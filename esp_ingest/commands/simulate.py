"""`esp-ingest simulate`: a fleet of ESP controllers, or a recording."""

import argparse
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from esp_ingest.commands.arguments import Given, count, number, seconds, whole

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings

# demo/fleet.py has them; a test compares.
FAULTS = (
    "gas_lock, pump_off, broken_shaft, dead_head, tubing_leak, overload, motor_hot, vibration, frozen_signal, "
    "gauge_dropout, trip, stale"
)
_TROUBLE = {
    "malformed": "each becomes a reject",
    "duplicates": "sent twice",
    "late": "sent 5 to 60 s late",
    "future": "stamped an hour ahead, which is a reject",
    "odd": "stored: padded, with an unusual offset, or with a value that costs its own signal alone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fleet or recording, its faults, and trouble on the way."""
    add_fleet(parser, wells=10)
    parser.add_argument(
        "--fault", action=Given, default=[], metavar="NAME", help=f"fault to show; may be repeated: {FAULTS}"
    )
    parser.add_argument(
        "--fault-after",
        action=Given,
        type=seconds,
        default=0.0,
        metavar="S",
        help="seconds until the fault sets in (0)",
    )
    parser.add_argument(
        "--speed",
        action=Given,
        type=seconds,
        default=1.0,
        metavar="X",
        help="times real time; 0: as fast as possible",
    )
    parser.add_argument(
        "--keep-timestamps",
        action=Given,
        nargs=0,
        default=False,
        help="replay with the recording's own timestamps",
    )
    for name, meaning in _TROUBLE.items():
        text = f"share of {name} messages, 0 to 1 ({meaning})"
        parser.add_argument(f"--{name}", type=_share, default=0.0, metavar="SHARE", help=text)


def add_fleet(parser: argparse.ArgumentParser, wells: int) -> None:
    """What simulate and demo have in common; so many ``wells`` if nothing is said."""
    fleet = (
        ("--wells", count, wells, "N", f"wells in the fleet ({wells})"),
        ("--rate", _rate, 1.0, "HZ", "readings a second and well (1)"),
        ("--duration", seconds, 60.0, "S", "seconds to run (60)"),
        ("--seed", _seed, 1, "N", "the same seed gives the same fleet (1)"),
    )
    for name, kind, default, metavar, text in fleet:
        parser.add_argument(name, action=Given, type=kind, default=default, metavar=metavar, help=text)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="replay this recording instead of simulating")


def problem(arguments: argparse.Namespace) -> str:
    """Which options of simulate or demo exclude each other, and why; "" if none do."""
    given = set(getattr(arguments, "given", ()))
    if arguments.csv is not None:
        for option in ("wells", "rate", "fault", "fault_after", *(["duration"] if "fault" in arguments else ["seed"])):
            if option in given:
                return f"--{option.replace('_', '-')} applies to a simulated fleet: leave it out, or leave out --csv"
        return ""
    for option in ("speed", "keep_timestamps"):
        if option in given:
            return f"--{option.replace('_', '-')} applies to a recording: name one with --csv, or leave it out"
    if "fault_after" in given and not arguments.fault:
        return "--fault-after needs a --fault"
    if sum(getattr(arguments, name, 0.0) for name in _TROUBLE) > 1:
        return f"the shares of {', '.join(f'--{name}' for name in _TROUBLE)} are more than 1 together"
    return ""


def run(settings: "Settings", arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises ConfigError, SimulatorError, ReplayError."""
    from esp_ingest.demo import simulator

    return simulator.run_simulate(settings, arguments)


def _rate(text: str) -> float:
    return number(text, 1e-6, 1e6, "a rate above 0")


def _share(text: str) -> float:
    return number(text, 0, 1, "a share from 0 to 1")


def _seed(text: str) -> int:
    return whole(text, 0, inf, "a whole number of at least 0")
