"""Output that no terminal refuses: its encoding may be ASCII, Latin-1 or a code page, where we print °F, × and µs."""

import codecs
import contextlib
import io
import sys

_PLAIN = {
    "°": "deg ", "µ": "u", "μ": "u", "×": "x", "·": "*", "–": "-", "—": "-", "−": "-", "…": "...", "→": "->", "≥": ">=",
    "≤": "<=", "≠": "!=", "±": "+/-", "²": "2", "³": "3", "‘": "'", "’": "'", "“": '"', "”": '"', "§": "section ",
}  # fmt: skip


def accept_all_text() -> None:
    """From now on stdout and stderr of this process print any text: what their encoding does not have is written in
    ASCII, as a word for it or else as its escaped code. Streams that tests put in their place are left alone."""
    codecs.register_error(__name__, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(LookupError, OSError, ValueError):  # closed, or its encoding is not known
                stream.reconfigure(errors=__name__)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    refused = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or _escaped(each) for each in refused), error.end


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
