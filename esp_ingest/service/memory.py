"""What the settings allow this process to hold, added up against the limit of its cgroup.

Each part has its own bound elsewhere; here they meet. The figures for a message, a well and a decoded byte are upper
estimates from measurements (docs/operations.md, "Memory"), so that a process whose sum fits is not killed.
"""

import re
from pathlib import Path
from typing import NamedTuple

from esp_ingest.config.settings import Settings

MIB = 1_048_576
LEAST_BASE_BYTES = 100 * MIB  # interpreter, libraries and code, once a connection and a batch have been there
MESSAGE_BYTES = 400  # Python objects around a small message
# Of a payload while it is taken apart and written, for each of its bytes; measured at most 25, with 4 MB of quotes.
DECODE_FACTOR = 28
WELL_BYTES = 7_936  # arrays of a well with the rules that ship
OPEN_BYTES = 2_048  # two open occurrences, and a well's entries in dictionaries
NAMES_BYTES = 64 * MIB  # topics and high-water marks, both bounded by number
CLIENT_BYTES = 16_384
SQLITE_BYTES = 8 * MIB
_UNLIMITED = 1 << 60  # cgroup v1 says so by a number near 2^63


class Part(NamedTuple):
    """Bytes at most, and the settings that bound them."""

    name: str
    size: int
    settings: str


def parts(settings: Settings, base_bytes: int) -> list[Part]:
    """What may be held at the same time. ``base_bytes`` is what the process takes before any message."""
    mqtt, largest = settings.mqtt, max(settings.batch.max_bytes, settings.telemetry.max_payload_bytes)
    found = [
        Part("process", max(base_bytes, LEAST_BASE_BYTES), ""),
        Part("decoding", largest * DECODE_FACTOR, "batch.max_bytes, telemetry.max_payload_bytes"),
        Part(
            "buffer",
            mqtt.buffer_max_bytes + 2 * mqtt.receive_maximum * MESSAGE_BYTES,
            "mqtt.buffer_max_bytes, mqtt.receive_maximum",
        ),
        Part("packet", 2 * mqtt.max_packet_bytes, "mqtt.max_packet_bytes"),
        Part("batches", 4 * max(settings.batch.max_bytes, mqtt.max_packet_bytes), "batch.max_bytes"),
        Part("names", NAMES_BYTES, ""),
        Part("http", 256 * CLIENT_BYTES, ""),
    ]
    if settings.diagnostics.enabled:
        found.append(Part("wells", settings.diagnostics.max_wells * (WELL_BYTES + OPEN_BYTES), "diagnostics.max_wells"))
    if settings.spool.enabled:
        found.append(Part("spool", SQLITE_BYTES + 2 * largest, "batch.max_bytes"))
    return found


def resident_bytes() -> int:
    """What this process holds now; 0 where the system does not tell."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1_024 if found else 0


def cgroup_limit(root: Path = Path("/")) -> int | None:
    """The least memory limit of this process's cgroup and of those above it, bytes; None where there is none. Reads
    version 1 and 2; ``root`` is for tests."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(mount: Path, path: str, name: str) -> list[int]:
    """From ``path`` up to the mount; in a container the path may not be there, and the mount is the cgroup itself."""
    place = mount / path.strip("/")
    found: list[int] = []
    while True:
        try:
            text = (place / name).read_text().strip()
        except OSError:
            text = ""
        if text.isdigit() and int(text) < _UNLIMITED:
            found.append(int(text))
        if place == mount or mount not in place.parents:
            return found
        place = place.parent


class Judged(NamedTuple):
    """``fits`` is None without a limit. ``sentence`` says what was found and what to change."""

    fits: bool | None
    sentence: str


def judge(settings: Settings, base_bytes: int, limit_bytes: int | None) -> Judged:
    """Whether what the settings allow fits into the limit, in one line."""
    found = parts(settings, base_bytes)
    total = sum(part.size for part in found)
    largest = sorted((part for part in found if part.settings), key=lambda part: -part.size)[:3]
    listed = ", ".join(f"{part.name} {_mib(part.size)}" for part in sorted(found, key=lambda part: -part.size))
    if limit_bytes is None:
        return Judged(None, f"at most {_mib(total)} MiB ({listed}); this process has no memory limit of its own")
    if total <= limit_bytes:
        return Judged(True, f"at most {_mib(total)} of {_mib(limit_bytes)} MiB ({listed})")
    advice = "; ".join(part.settings for part in largest)
    limit = f"the limit of the cgroup is {_mib(limit_bytes)} MiB"
    return Judged(
        False, f"the settings allow {_mib(total)} MiB ({listed}), {limit}: raise the limit, or lower {advice}."
    )


def _mib(size: int) -> int:
    return -(-size // MIB)
