"""Files that travel with the program: migrations, named queries, default settings and rules.

In a checkout they stand at the top of the repository, where a reader looks; in a wheel they lie inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent


def sql_folder() -> Path:
    """The folder of numbered migrations and named queries."""
    return _first_existing(_PACKAGE / "_sql", _CHECKOUT / "sql")


def config_file(name: str) -> Path:
    """A default configuration file by name, for example ``esp_ingest.toml`` or ``rules.toml``."""
    return _first_existing(_PACKAGE / "_config" / name, _CHECKOUT / "config" / name)


def _first_existing(*candidates: Path) -> Path:
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{candidates[0].name} did not come with this installation: install esp-ingest again.")
