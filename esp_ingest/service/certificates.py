"""When certificates end, for the metrics: the files that the settings name, and what the broker shows."""

import contextlib
import logging
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from esp_ingest.service.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0  # files are renewed on disk
BROKER = "mqtt broker"

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _EXPLICIT_0 = 0x17, 0xA0


def expires(path: Path, *, is_trusted: bool) -> float:
    """Unix seconds at which a PEM file is of no more use: of a chain its first certificate's end, of certificates that
    are trusted the last one's. Raises OSError, ValueError."""
    ends = [not_after(ssl.PEM_cert_to_DER_cert(each)) for each in _PEM.findall(path.read_text(encoding="ascii"))]
    if not ends:
        raise ValueError("no certificate in it")
    return max(ends) if is_trusted else ends[0]


def not_after(der: bytes) -> float:
    """The end of a certificate's validity (RFC 5280, section 4.1) in Unix seconds. Raises ValueError."""
    try:
        at = _inside(der, _inside(der, 0))  # Certificate, TBSCertificate
        if der[at] == _EXPLICIT_0:
            at = _behind(der, at)
        for _ in ("serial number", "signature", "issuer"):
            at = _behind(der, at)
        at = _behind(der, _inside(der, at))  # Validity: behind notBefore
        text = der[_inside(der, at) : _behind(der, at)].decode("ascii")
        if der[at] == _UTC_TIME:
            text = ("19" if text[:2] >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except IndexError:
        raise ValueError("the certificate is cut off") from None


def _inside(der: bytes, at: int) -> int:
    """Where the contents of the element at ``at`` begin."""
    length = der[at + 1]
    return at + 2 + (length & 0x7F if length & 0x80 else 0)


def _behind(der: bytes, at: int) -> int:
    """Where the element behind that at ``at`` begins."""
    start, length = _inside(der, at), der[at + 1]
    return start + (int.from_bytes(der[at + 2 : start], "big") if length & 0x80 else length)


def note_broker(connection: object, metrics: Metrics) -> None:
    """What the broker showed on a connection that stands, nothing without TLS."""
    if isinstance(connection, ssl.SSLSocket):
        with contextlib.suppress(ValueError, OSError):
            if der := connection.getpeercert(binary_form=True):
                metrics.certificate_expires.labels(BROKER).set(not_after(der))


class CertificateWatch:
    """Looks once a minute at ``files``, by the names that their series have. For one thread."""

    def __init__(self, files: Mapping[str, Path], metrics: Metrics) -> None:
        self._files, self._metrics = files, metrics
        self._next_look = 0.0

    def look(self, now: float) -> None:
        """``now`` is monotonic. A file that cannot be read has no series: the connection says why."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        for name, path in self._files.items():
            try:
                ends = expires(path, is_trusted=name.endswith(("ca_file", "sslrootcert")))
                self._metrics.certificate_expires.labels(name).set(ends)
            except (OSError, ValueError) as error:
                self._metrics.certificate_expires.remove(name)
                log.debug("certificate not read", extra={"path": str(path), "error": str(error)})
