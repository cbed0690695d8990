"""Fixtures of the whole suite live in tests/support, a module a part; this file only names them."""

pytest_plugins = ["tests.support.brokers", "tests.support.databases", "tests.support.proxy"]
