"""`esp-ingest migrate`: bring the database to the newest schema."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--adopt."""
    parser.add_argument(
        "--adopt", action="store_true", help="apply what was left out before TimescaleDB was there; locks the tables"
    )


def run(settings: "Settings", arguments: argparse.Namespace) -> list[str]:
    """The lines to print. Raises SchemaError, StoreUnavailable."""
    from esp_ingest.store import schema

    return schema.migrate(settings.database, adopt=arguments.adopt).lines()
