"""Certificates and keys in files: loaded without asking on the terminal, and the setting that is at fault if not."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from esp_ingest.config.settings import ConfigError

_KEY_OF_ANOTHER = "KEY_VALUES_MISMATCH"


def load_own(context: ssl.SSLContext, section: str, files: Mapping[str, str], password: str = "") -> None:
    """Load certificate and key of ``files`` into ``context``, and what it trusts, if ``ca_file`` is there. The keys of
    ``files`` are the settings in ``section``: those of the certificate, of its key, and ``ca_file``, in this order; the
    paths may be empty. Raises ConfigError."""
    certificate, key = list(files)[:2]
    asked: list[str] = []

    def key_password() -> str:
        asked.append(password)
        if not password:
            raise ValueError("without a password OpenSSL would ask for one on the terminal")
        return password

    try:
        if files[certificate]:
            context.load_cert_chain(files[certificate], files[key], key_password)
        if files.get("ca_file"):
            context.load_verify_locations(files["ca_file"])
    except (OSError, ValueError) as error:
        said = _unreadable(section, files)
        if not said and asked:
            said = _of_the_key(section, key, files[key], password, error)
        raise ConfigError(said or _content(section, files, error)) from None


def _unreadable(section: str, files: Mapping[str, str]) -> str:
    for name, path in files.items():
        if path:
            try:
                Path(path).read_bytes()
            except OSError as error:
                return f"Setting {section}.{name}: {path} cannot be read ({error.strerror})."
    return ""


def _of_the_key(section: str, key: str, path: str, password: str, error: Exception) -> str:
    """What is wrong with the password of an encrypted key; the API has no setting for one."""
    if getattr(error, "reason", "") == _KEY_OF_ANOTHER:
        return ""
    if section == "api":
        return f"Setting api.{key}: {path} is encrypted: give it a key without a password."
    if not password:
        return f"Setting {section}.{key}: {path} is encrypted: set {section}.key_password (or its _file)."
    return f"Setting {section}.key_password: it does not open {path}."


def _content(section: str, files: Mapping[str, str], error: Exception) -> str:
    certificate, key = list(files)[:2]
    if getattr(error, "reason", "") == _KEY_OF_ANOTHER:
        return f"Setting {section}.{key}: {files[key]} is not the key of the certificate in {section}.{certificate}."
    for name, path in files.items():
        if name != key and path and not _holds_certificate(path):
            return f"Setting {section}.{name}: {path} holds no certificate in PEM."
    reason = getattr(error, "strerror", None) or str(error)
    return f"Setting {section}.{key}: {files[key]} holds no private key in PEM ({reason})."


def _holds_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True
