"""`python -m esp_ingest` is `esp-ingest`."""

from esp_ingest.cli import main

raise SystemExit(main())
