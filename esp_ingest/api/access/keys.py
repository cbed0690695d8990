"""The keys that sign access tokens. The key decides the algorithm, never the token: a token whose header says
"none", or that uses a public key as a shared secret, is refused before anything is computed."""

import hashlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from esp_ingest.config.settings import ConfigError, Settings

log = logging.getLogger(__name__)

LEEWAY_SECONDS = 30.0  # clocks apart
_LEAST_SECRET_BYTES = 32
_LEAST_RSA_BITS = 2_048


@dataclass(frozen=True)
class Key:
    """One key. ``signing`` is None for a public key, which can only verify."""

    kid: str
    algorithm: str
    signing: Any
    verifying: Any


class KeyRing:
    """Keys by their id. The first one signs, all of them verify."""

    def __init__(self, keys: list[Key]) -> None:
        if not keys or keys[0].signing is None:
            raise ConfigError("The first file of api.key_file must hold a private key or a secret: it signs.")
        self._first = keys[0]
        self._by_id = {key.kid: key for key in keys}

    def sign(self, claims: dict[str, Any]) -> str:
        """A signed token (JWT) with these claims."""
        return jwt.encode(
            claims, self._first.signing, algorithm=self._first.algorithm, headers={"kid": self._first.kid}
        )

    def verify(self, token: str, *, issuer: str, audience: str, required: list[str]) -> dict[str, Any]:
        """The claims of a token, if one of these keys signed it and it is valid now. Raises jwt.InvalidTokenError."""
        key = self._by_id.get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise jwt.InvalidTokenError("signed with a key that is not known here")
        return jwt.decode(
            token,
            key.verifying,
            algorithms=[key.algorithm],
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY_SECONDS,
            options={"require": required},
        )


def load(settings: Settings) -> KeyRing:
    """The keys of ``api.key_file``, or else the key in the state folder, which is made if it is missing. Raises
    ConfigError."""
    paths = [Path(path) for path in settings.api.key_files()] or [_own_key(settings)]
    return KeyRing([read(path) for path in paths])


def read(path: Path) -> Key:
    """Read one key file. Raises ConfigError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"api.key_file: {path} cannot be read: {error.strerror}.") from None
    if b"-----BEGIN" not in content:
        secret = content.strip()
        if len(secret) < _LEAST_SECRET_BYTES:
            raise ConfigError(
                f"api.key_file: {path} is neither PEM nor {_LEAST_SECRET_BYTES} bytes of secret: "
                "make one with `openssl rand -hex 32`."
            )
        return Key(key_id(b"secret", secret), "HS256", secret, secret)
    return _from_pem(path, content)


def _from_pem(path: Path, content: bytes) -> Key:
    private: Any = None
    try:
        if b"PRIVATE KEY" in content:
            private = serialization.load_pem_private_key(content, None)
            public: Any = private.public_key()
        else:
            public = serialization.load_pem_public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"api.key_file: {path} is not a PEM key without a passphrase.") from None
    spelled = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Key(key_id(b"public", spelled), _algorithm(path, public), private, public)


def _algorithm(path: Path, public: Any) -> str:
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= _LEAST_RSA_BITS:
        return "RS256"
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return "ES256"
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "EdDSA"
    raise ConfigError(f"api.key_file: {path} must be RSA of {_LEAST_RSA_BITS} bits or more, EC P-256 or Ed25519.")


def key_id(kind: bytes, content: bytes) -> str:
    """The name of a key in tokens: 16 hexadecimal digits, which do not tell the key."""
    return hashlib.sha256(b"esp-ingest key id " + kind + content).hexdigest()[:16]


def _own_key(settings: Settings) -> Path:
    """The path of the secret, in the folder that holds the spool. If several processes start at once they agree on one:
    the first to link it wins."""
    path = settings.spool.folder().parent / "api-key"
    if path.exists():
        return path
    temporary = path.with_name(f"api-key.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return path
        finally:
            temporary.unlink()
    except OSError as error:
        raise ConfigError(
            f"The key of the access tokens cannot be kept in {path.parent} ({error.strerror}): set api.key_file."
        ) from None
    log.warning("a key for access tokens was made", extra={"path": str(path), "hint": "set api.key_file to choose one"})
    return path
