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
    missing = [package for package in _PACKAGES[extra] if find_spec(package) is None]
    if missing:
        raise ExtraMissing(f'{what} needs {", ".join(missing)}: pip install "esp-ingest[{extra}]".')
