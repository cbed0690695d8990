"""Fixtures of the whole suite live in tests/support, a module a part; this file only names them."""

import os
import signal
import sys
from collections.abc import Generator

import pytest

# Where a machine sets it, this process and each of the hundreds that the tests start compile all their modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts us in the background makes us ignore SIGINT, and every process that the tests start inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# databases first: pytest wants to see a plugin before another imports it.
pytest_plugins = [
    "tests.support.databases",
    "tests.support.brokers",
    "tests.support.poolers",
    "tests.support.proxy",
    "tests.support.rig",
    "tests.support.storages",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make each sixth file one of the fault suite while there are any. Its processes want more than a processor, while
    the others mostly wait: it is best if the workers of pytest-xdist are not all in that suite at once."""
    files = list(dict.fromkeys(item.path for item in items))
    faults = [path for path in files if path.parent.name == "fault"]
    others = [path for path in files if path.parent.name != "fault"]
    place = {path: at + 0.5 for at, path in enumerate(others)} | {path: 5.0 * at for at, path in enumerate(faults)}
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Half a surrogate pair in a log line cannot go from a worker of pytest-xdist to its parent."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report
