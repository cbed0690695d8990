"""One JSON object a line on stdout, or a readable line on a terminal. Standard library only: decision 0006.

Modules log as usual, ``logging.getLogger(__name__).warning("the database is away", extra={"reason": …})``: the message
is the ``event``, a short fixed phrase that can be searched for, and what varies goes into ``extra``.
"""

import json
import logging
import math
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from esp_ingest.service.text import rfc3339

if TYPE_CHECKING:
    from esp_ingest.config.settings import LogSettings

# A line has to survive journald, container runtimes and shippers: they cut at 16 KiB or more, so we stay below.
MAX_TEXT_CHARACTERS = 2_000
MAX_SCANNED_CHARACTERS = 16_384
MAX_ITEMS = 32
MAX_DEPTH = 4
MAX_LINE_CHARACTERS = 15_000
HIDDEN = "***"

_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SECRET_NAME = re.compile(r"password|passwd|secret|token|^dsn$|conninfo|authorization", re.IGNORECASE)
# password=… of a libpq string ('quoted' or bare) and of JSON or repr; then user:password@ of a URL, to the last @ of
# it, since an unescaped @ in a password is the commonest mistake there.
_SECRET_PAIR = re.compile(
    r"(?i)\b((?:pg)?passw(?:or)?d[\"']?\s*[=:]\s*)(\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\s,;&}]+)"
)
_SECRET_URL = re.compile(r"(://[^\s:/@]*):\S*@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def redact(text: str) -> str:
    """The text without the passwords of connection strings and URLs."""
    if "@" in text:
        text = _SECRET_URL.sub(rf"\1:{HIDDEN}@", text)
    return _SECRET_PAIR.sub(rf"\1{HIDDEN}", text)


def configure(settings: "LogSettings", stream: TextIO | None = None) -> None:
    """Send all logging of this process to ``stream`` (None: stdout) as ``settings`` say. May be called again."""
    handler = _QuietHandler(stream if stream is not None else sys.stdout)
    is_for_people = settings.format == "console"
    if "format" not in settings.model_fields_set and stream is None:
        is_for_people = sys.stdout.isatty()  # nobody has chosen, and somebody is looking
    handler.setFormatter(ConsoleFormatter() if is_for_people else JsonFormatter())
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _QuietHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    # The pool warns at each failed attempt; the writer tells of an outage once, through Repeated.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # It warns of a pipeline that an error has ended; the error itself is reported where it is caught.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_death


def _log_thread_death(args: threading.ExceptHookArgs) -> None:
    """A thread that dies says so as one line like all others, not as a bare traceback on stderr."""
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else ""
        info = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger(__name__).critical("a thread died", exc_info=info, extra={"thread_name": name})


class _QuietHandler(logging.StreamHandler[TextIO]):
    """A log that cannot be written (a closed pipe, a full disk) must not stop or fill anything."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - the name is logging's
        return


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: timestamp, level, event, logger, the extra fields, and exception where there is one.

    The text is pure ASCII with control characters escaped, so that nothing a sender wrote can start a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        fields = _fields(record)
        line = json.dumps(fields)
        if len(line) > MAX_LINE_CHARACTERS:
            kept = {key: fields[key] for key in ("timestamp", "level", "event", "logger")}
            names = ", ".join(key for key in fields if key not in kept)
            line = json.dumps(kept | {"cut": f"the line had {len(line)} characters", "fields": _cut(names)})
        return line


class ConsoleFormatter(logging.Formatter):
    """A record for a person at a terminal: local time would differ from the data's, so UTC here too."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for people."""
        fields = _fields(record)
        stamp, level, event = fields.pop("timestamp"), fields.pop("level"), fields.pop("event")
        logger = fields.pop("logger")
        details = " ".join(f"{_escaped(key)}={_shown(value)}" for key, value in fields.items())
        return f"{stamp[11:23]} {level:<8} {_escaped(event)}  {details}  [{_escaped(logger)}]".replace("    [", "  [")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "timestamp": rfc3339(int(record.created * 1_000) * 1_000, digits="milliseconds"),
        "level": record.levelname.lower(),
        "event": _text(_message(record)),
        "logger": record.name,
    }
    for key, value in record.__dict__.items():
        if key not in _STANDARD_FIELDS:
            fields[key if key not in fields else f"{key}_"] = HIDDEN if _SECRET_NAME.search(key) else _plain(value)
    if record.exc_info:
        fields["exception"] = _exception(record.exc_info)
    if record.stack_info:
        fields["stack"] = _text(record.stack_info)
    return fields


def _message(record: logging.LogRecord) -> str:
    """The message with its arguments, or without them where a library's arguments do not fit its format."""
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg} {record.args!r}"


def _exception(
    info: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
) -> dict[str, Any]:
    """Type, text, and the call sites innermost first: one field, since a traceback's lines would be many records."""
    kind, error, trace = info
    if kind is None or error is None:
        return {}
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    frames = traceback.extract_tb(trace)[-10:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    return {"type": f"{kind.__module__}.{kind.__qualname__}", "text": _text(text), "where": where}


def _plain(value: object, depth: int = 0) -> Any:
    """The value as JSON can hold it. Whatever it is, this neither raises nor returns something large."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else _text(hex(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))  # JSON has no NaN
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes | bytearray):
        return _text(bytes(value[:MAX_SCANNED_CHARACTERS]).decode("utf-8", "backslashreplace"))
    if depth < MAX_DEPTH:
        try:
            return _plain_container(value, depth)
        except Exception:
            return "(cannot be shown)"
    return "…"


def _plain_container(value: object, depth: int) -> Any:
    if isinstance(value, Mapping):
        first = list(value.items())[:MAX_ITEMS]
        return {
            _text(str(key)): HIDDEN if _SECRET_NAME.search(str(key)) else _plain(item, depth + 1) for key, item in first
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    return _text(str(value))


def _text(text: str) -> str:
    return _cut(redact(text[:MAX_SCANNED_CHARACTERS]))


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    return f"{text[:MAX_TEXT_CHARACTERS]}… ({len(text)} characters)"


def _escaped(text: str) -> str:
    """Control characters made visible: a terminal must not obey what a sender wrote."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = _escaped(text)
    return f'"{text}"' if isinstance(value, str) and (" " in text or not text) else text


class Repeated:
    """A failure that goes on: told when it starts, at growing intervals, and when it ends; never once a message.

    Handed monotonic time in seconds. A reason that is new in this outage is told at once, up to ``MAX_REASONS`` of
    them, so that reasons which change at every attempt do not flood the log either. For one thread at a time.
    """

    MAX_REASONS = 8
    FIRST_SECONDS, LONGEST_SECONDS = 10.0, 900.0

    def __init__(
        self,
        logger: logging.Logger,
        event: str,
        ended_event: str,
        *,
        level: int = logging.WARNING,
    ) -> None:
        self._logger, self._event, self._ended_event, self._level = logger, event, ended_event, level
        self._since: float | None = None
        self._tell_at = 0.0
        self._interval_seconds = self.FIRST_SECONDS
        self._reasons: set[str] = set()
        self.failures = 0

    @property
    def active(self) -> bool:
        """It has failed and not ended."""
        return self._since is not None

    def failed(self, now: float, reason: str, **fields: object) -> bool:
        """It failed (again). Returns whether a line was written."""
        if self._since is None:
            self._since, self._interval_seconds, self.failures = now, self.FIRST_SECONDS, 0
            self._tell_at = now + self._interval_seconds
            self._reasons = set()
        self.failures += 1
        is_new = reason not in self._reasons and len(self._reasons) < self.MAX_REASONS
        if is_new:
            self._reasons.add(reason)
        elif now < self._tell_at:
            return False
        if now >= self._tell_at:
            self._interval_seconds = min(3.0 * self._interval_seconds, self.LONGEST_SECONDS)
            self._tell_at = now + self._interval_seconds
        self._tell(self._level, self._event, now, reason=reason, **fields)
        return True

    def ended(self, now: float, **fields: object) -> bool:
        """It works. Returns whether a line was written, which is only after a failure."""
        if self._since is None:
            return False
        self._tell(logging.INFO, self._ended_event, now, **fields)
        self._since = None
        return True

    def _tell(self, level: int, event: str, now: float, **fields: object) -> None:
        assert self._since is not None
        known = {"failures": self.failures, "failing_seconds": round(max(0.0, now - self._since), 3)}
        self._logger.log(level, event, extra=known | fields)
