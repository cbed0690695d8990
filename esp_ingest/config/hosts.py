"""Host names and addresses in settings."""

import ipaddress
import re
from urllib.parse import urlsplit

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def checked_host(text: str) -> str:
    """``text``, which is a host name or an address and nothing else: whatever more is in it would only fail when it is
    looked up. Raises ValueError with what to write instead."""
    if re.search(r"\s", text):
        raise ValueError("must be a host name or address alone, without white space")
    scheme, has_scheme, rest = text.rpartition("://")
    authority = rest.partition("/")[0].rpartition("@")[2]
    in_brackets = re.fullmatch(r"\[(?P<host>.*)\](?::(?P<port>\d+))?", authority)
    plain = re.fullmatch(r"(?P<host>[^:]*)(?::(?P<port>\d+))?", authority)
    parts = in_brackets or plain
    if has_scheme or parts is None or authority != text or in_brackets or parts["port"]:
        if parts is None and not has_scheme and _is_ipv6(text):
            return text
        raise ValueError(f"must be a host name or address alone{_in_parts(scheme, parts, rest)}")
    try:
        text.removesuffix(".").encode("idna")
    except UnicodeError:
        raise ValueError("must be a host name or address: a part of it is empty or too long") from None
    return text


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _in_parts(scheme: str, parts: re.Match[str] | None, rest: str) -> str:
    """What to write in place of a URL or of host:port. User names and passwords of a URL are not repeated."""
    if parts is None or not parts["host"]:
        return ""
    written = [f'host = "{parts["host"]}"']
    if parts["port"]:
        written.append(f"port = {parts['port']}")
    if scheme.lower() in ("mqtts", "ssl", "tls", "wss", "https"):
        written.append("tls = true")
    if scheme.lower() in ("ws", "wss"):
        written.append('transport = "websockets"')
        written.append(f'websocket_path = "/{rest.partition("/")[2]}"')
    return f": write {', '.join(written)}"


def is_private_url(text: str) -> bool:
    """Whether nobody on the way can read what is sent to this URL: it is https, or http to this very machine."""
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _THIS_MACHINE))
