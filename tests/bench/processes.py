"""CPU and memory of process trees, and of the machine, from /proc."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def installed_environment(cache: Path) -> dict[str, str]:
    """Our environment, in which Python keeps compiled modules in ``cache``: as it is where a program is installed, and
    unlike a development machine that sets PYTHONDONTWRITEBYTECODE, where each start compiles for seconds."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def tree(pid: int) -> list[int]:
    """``pid`` and all its descendants that live now."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        found.append(parent)
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                queue += [int(child) for child in (task / "children").read_text().split()]
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on: a name in the second may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree under ``pid``, with that of descendants that have ended and been waited for."""
    ticks = 0
    for member in tree(pid):
        with suppress(OSError):
            ticks += sum(int(field) for field in _stat(member)[11:15])
    return ticks * _TICK_SECONDS


def rss_bytes(pid: int) -> int:
    """Resident memory of the tree (pages that processes share are counted for each)."""
    total = 0
    for member in tree(pid):
        with suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return total * _PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU seconds of the whole machine since boot."""

    busy: float
    idle: float
    steal: float

    @staticmethod
    def now() -> "Machine":
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(field) * _TICK_SECONDS for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        )
        return Machine(user + nice + system + irq + softirq, idle + iowait, steal)

    def since(self, earlier: "Machine") -> "Machine":
        return Machine(self.busy - earlier.busy, self.idle - earlier.idle, self.steal - earlier.steal)


class MemoryWatch:
    """Samples the resident memory of a tree twice a second, on a thread of its own."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self.samples: list[int] = []

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.samples.append(rss_bytes(self._pid))

    @property
    def peak_bytes(self) -> int:
        return max(self.samples, default=0)

    @property
    def growth_bytes(self) -> int:
        """From the mean of the second quarter of the run to that of the last: 0 where memory is flat."""
        quarter = len(self.samples) // 4
        if not quarter:
            return 0
        second, last = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return round(sum(last) / len(last) - sum(second) / len(second))
