"""The HTTP API and the console: a separate process (`esp-ingest api`). The daemon never imports this package. It
needs the extra ``api``, so only commands/api.py and commands/users.py import it, and only when they run."""
