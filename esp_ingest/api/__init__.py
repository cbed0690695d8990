"""The HTTP API and console: a process of its own (`esp-ingest api`). The daemon never imports it, and it needs the
extra ``api``, so only commands/api.py and commands/users.py import it, when they run."""
