"""`python -m esp_ingest` is `esp-ingest`: signals are answered before anything else is loaded."""

import sys

from esp_ingest.service import lifetime


def main() -> int:
    """Entry point of ``esp-ingest``. Returns the exit code."""
    lifetime.begin(sys.argv[1] if len(sys.argv) > 1 else "")
    from esp_ingest import cli

    try:
        lifetime.has_loaded()
        code = cli.main()
        lifetime.is_over()
    except KeyboardInterrupt:
        return lifetime.interrupted()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
