"""Fixtures of the whole suite live in tests/support, a module a part; this file only names them."""

# databases first: pytest wants to see a plugin before another imports it.
pytest_plugins = [
    "tests.support.databases",
    "tests.support.brokers",
    "tests.support.poolers",
    "tests.support.proxy",
    "tests.support.rig",
    "tests.support.storages",
]
