"""Puts a bench's figures into docs/performance.md, between the markers of that bench."""

from pathlib import Path

_DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "performance.md"


def paste(text: str, name: str) -> None:
    """Replace what stands between the markers of ``name``."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    document = _DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = document.partition(begin)
    _, _, tail = rest.partition(end)
    _DOCUMENT.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
