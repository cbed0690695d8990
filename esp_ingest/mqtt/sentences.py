"""What an end or a refusal of the broker means, in a sentence that says what to do. For every connection to it."""

import ssl

from paho.mqtt.reasoncodes import ReasonCode

from esp_ingest.config.settings import MqttSettings

UNSUPPORTED_PROTOCOL, BAD_LOGIN, NOT_AUTHORIZED, SESSION_TAKEN_OVER = 0x84, 0x86, 0x87, 0x8E
REFUSED_PROTOCOL = "The broker does not speak MQTT"

_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_*
_OTHER_NAME = (62, 64)  # of a host, of an address


def address(settings: MqttSettings) -> str:
    """The broker as people write it."""
    return f"{settings.host}:{settings.port}"


def unreachable(settings: MqttSettings, error: OSError) -> str:
    """No connection came about."""
    return f"The broker at {address(settings)} cannot be reached: {_reason(settings, error)}."


def connect_refused(settings: MqttSettings, protocol: str, reason: ReasonCode) -> str:
    """CONNACK says no."""
    if reason.value == UNSUPPORTED_PROTOCOL:
        share = ", and clear mqtt.share_group, which needs 5" if settings.share_group else ""
        return f"{REFUSED_PROTOCOL} {protocol}: set mqtt.protocol to one that it speaks{share}."
    if reason.value in (BAD_LOGIN, NOT_AUTHORIZED):
        user = settings.username or "(none)"
        return (
            f"The broker at {address(settings)} refused the login of user {user} ({reason}): "
            "check mqtt.username and mqtt.password."
        )
    return f"The broker at {address(settings)} refused the connection: {reason}."


def no_share_groups(settings: MqttSettings) -> str:
    """CONNACK says that the broker has none."""
    return (
        f"The broker at {address(settings)} has no share groups, so {settings.share_group} would get nothing: "
        "clear mqtt.share_group, or take a broker that has them."
    )


def ended(settings: MqttSettings, reason: ReasonCode) -> str:
    """The broker sent DISCONNECT."""
    if reason.value == SESSION_TAKEN_OVER:
        return (
            f"Another client with the id {settings.client_id} took over the session: "
            "stop it, or give each daemon its own mqtt.client_id (with mqtt.share_group to share the work)."
        )
    return f"The broker at {address(settings)} ended the connection: {reason}."


def lost(settings: MqttSettings, *, is_accepted: bool, is_flapping: bool = False, error: OSError | None = None) -> str:
    """The connection is gone and the broker said nothing. ``error`` is what the last read raised. Nothing is guessed
    about other clients: brokers close without a word for many reasons."""
    if isinstance(error, ssl.SSLError):
        return unreachable(settings, error)
    if is_accepted and is_flapping:
        return (
            f"The connection to the broker at {address(settings)} keeps being lost, and the broker does not say why: "
            f"look for the client id {settings.client_id} in the broker's log."
        )
    if is_accepted:
        return f"The connection to the broker at {address(settings)} was lost."
    hint = "" if settings.tls else ": if this port speaks TLS, set mqtt.tls"
    return f"The broker at {address(settings)} closed the connection without an answer to CONNECT{hint}."


def _reason(settings: MqttSettings, error: OSError) -> str:
    """What the system says, and for TLS what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed ({error.verify_message}): {_advice_on_certificate(error.verify_code)}"
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        said = _spelled(error.reason)
        if settings.cert_file:
            return f"it refused our certificate ({said}): renew mqtt.cert_file and mqtt.key_file, or check its CA there"
        if "CERTIFICATE" in error.reason:
            return f"it wants a certificate of ours ({said}): set mqtt.cert_file and mqtt.key_file"
    # A listener without TLS answers nothing that can be read, or hangs up on the first packet.
    if isinstance(error, ssl.SSLError) or (settings.tls and isinstance(error, ConnectionResetError)):
        why = _spelled(getattr(error, "reason", "") or error.strerror or "refused")
        return f"no TLS connection ({why}): set mqtt.port to the broker's TLS port, or mqtt.tls to false"
    return error.strerror or str(error)


def _advice_on_certificate(code: int) -> str:
    if code == _EXPIRED:
        return "renew the broker's certificate, or set the clock of this machine"
    if code == _NOT_YET_VALID:
        return "set the clock of this machine, or the broker's certificate is for later"
    if code in _OTHER_NAME:
        return "set mqtt.host to a name in the certificate"
    return "set mqtt.ca_file to the CA that signed it, and mqtt.host to the name in it"


def _spelled(reason: str) -> str:
    return reason.replace("_", " ").lower()
