"""Hashes passwords with argon2id and the parameters of RFC 9106's second recommendation (64 MiB, 3 passes). Each
call takes some tens of milliseconds and 64 MiB: call it in a thread, and only a few at a time."""

from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST, LONGEST = 8, 1_024
_hasher = PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4)


def check_rules(password: str) -> None:
    """Check the length, and nothing else (NIST SP 800-63B). Raises ValueError."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise ValueError(f"a password has {SHORTEST} to {LONGEST} characters")


def hashed(password: str) -> str:
    """The hash of a password, as it is stored."""
    return _hasher.hash(password)


def matches(stored: str | None, password: str) -> bool:
    """Whether the password is the one that was hashed. Takes as long for a user that does not exist (None), so that
    nobody learns which users exist."""
    try:
        return _hasher.verify(stored if stored is not None else _nobody(), password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(stored: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


@cache
def _nobody() -> str:
    return _hasher.hash("a password that nobody has")
