"""Fixtures of the whole suite live in tests/support, a module a part; this file only names them."""

import signal
from collections.abc import Generator

import pytest

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Half a surrogate pair in a log line cannot go from a worker of pytest-xdist to its parent."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report
