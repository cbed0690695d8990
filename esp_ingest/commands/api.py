"""`esp-ingest api`: the HTTP API and console."""

import argparse
from typing import TYPE_CHECKING

from esp_ingest.commands.arguments import whole
from esp_ingest.service.extra import require

if TYPE_CHECKING:
    from esp_ingest.config.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--host and --port, which win over the settings."""
    parser.add_argument("--host", help="address to listen on (api.host)")
    parser.add_argument("--port", type=_port, metavar="N", help="port to listen on, 0 for any free one (api.port)")


def run(settings: "Settings", arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, ExtraMissing, ServerError."""
    require("api", "The HTTP API")
    from esp_ingest.api import server
    from esp_ingest.config.settings import ConfigError

    given = {name: getattr(arguments, name) for name in ("host", "port") if getattr(arguments, name) is not None}
    if given.get("host") == "":
        raise ConfigError("--host must name an address.")
    chosen = settings.api.model_copy(update=given)
    return server.run(settings.model_copy(update={"api": chosen}))


def _port(text: str) -> int:
    return whole(text, 0, 65_535, "a port (0 to 65535)")
