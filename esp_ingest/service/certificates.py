"""Finds out when certificates expire, for the metrics: those in the files that the settings name, and the one that
the broker presents."""

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
    """When the certificates of a PEM file expire, in Unix seconds. For a chain that is the end of its first
    certificate; for a list of trusted certificates it is the latest end. Raises OSError and ValueError."""
    ends = [not_after(ssl.PEM_cert_to_DER_cert(each)) for each in _PEM.findall(path.read_text(encoding="ascii"))]
    if not ends:
        raise ValueError("no certificate in it")
    return max(ends) if is_trusted else ends[0]


def not_after(der: bytes) -> float:
    """The end of a certificate's validity (RFC 5280, section 4.1) in Unix seconds. ``der`` is the certificate in
    DER. Raises ValueError."""
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
    """Where the contents of the DER element at ``at`` begin."""
    length = der[at + 1]
    return at + 2 + (length & 0x7F if length & 0x80 else 0)


def _behind(der: bytes, at: int) -> int:
    """Where the DER element after the one at ``at`` begins."""
    start, length = _inside(der, at), der[at + 1]
    return start + (int.from_bytes(der[at + 2 : start], "big") if length & 0x80 else length)


def note_broker(connection: object, metrics: Metrics) -> None:
    """Set the metric from the certificate that the broker presented. Does nothing for a connection without TLS."""
    if isinstance(connection, ssl.SSLSocket):
        with contextlib.suppress(ValueError, OSError):
            if der := connection.getpeercert(binary_form=True):
                metrics.certificate_expires.labels(BROKER).set(not_after(der))


class CertificateWatch:
    """Reads the certificate files once a minute. ``files``: their paths, by the name that is the label of the
    metric. For one thread."""

    def __init__(self, files: Mapping[str, Path], metrics: Metrics) -> None:
        self._files, self._metrics = files, metrics
        self._next_look = 0.0

    def look(self, now: float) -> None:
        """Read the files if a minute has passed; ``now`` is monotonic seconds. A file that cannot be read has no
        series: the connection that needs it reports why."""
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
