"""esp-ingest: the daemon between electric submersible pumps and TimescaleDB."""

__version__ = "0.1.0"
