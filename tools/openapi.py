"""docs/openapi.json, made from the routes: ``python -m tools.openapi`` (`make docs`). A test compares it,
so that whoever changes what clients rely on sees it in the diff."""

import json
import sys
from pathlib import Path

from esp_ingest.api.app import bare_app

FILE = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(bare_app().openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{FILE} written\n")
