"""What a command says where the extra is missing that it needs."""

from importlib.util import find_spec

from esp_ingest.errors import Error

_PACKAGES = {
    "archive": ("pyarrow", "obstore", "duckdb"),
    "api": ("fastapi", "uvicorn", "psycopg_pool", "argon2", "jwt", "cryptography", "python_multipart", "httpx"),
}


class ExtraMissing(Error):
    """The message is one sentence that says what to install."""


def require(extra: str, what: str) -> None:
    """Raises ExtraMissing unless all packages of the extra are there."""
    lacking = missing(extra)
    if lacking:
        raise ExtraMissing(f'{what} needs {", ".join(lacking)}: pip install "esp-ingest[{extra}]".')


def missing(extra: str) -> list[str]:
    """The packages of the extra that are not installed."""
    return [package for package in _PACKAGES[extra] if find_spec(package) is None]
