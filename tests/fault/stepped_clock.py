"""esp-ingest with a wall clock that a test can step: the file named by STEPPED_CLOCK holds an offset in seconds.

Only the clock's own module is touched, which by the rules of the house is the only one that asks for the time.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

from esp_ingest import cli
from esp_ingest.service import clock

_offset = Path(os.environ["STEPPED_CLOCK"])


def _time_ns() -> int:
    return time.time_ns() + int(float(_offset.read_text() or "0") * 1e9)


if __name__ == "__main__":
    stepped = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    stepped.time_ns = _time_ns
    vars(clock)["time"] = stepped  # a stand-in for the module, in this process alone
    raise SystemExit(cli.main())
