"""The tokens that a sign-in or a refresh returns, whether by password or through an OpenID provider."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tokens:
    """``refresh_token`` is None if an OpenID provider gave none. ``expires_in`` is the life of the access token in
    seconds."""

    access_token: str
    refresh_token: str | None
    expires_in: int

    def document(self) -> dict[str, Any]:
        """The tokens as the API returns them. A refresh token that does not exist is left out."""
        found = {"access_token": self.access_token, "token_type": "bearer", "expires_in": self.expires_in}
        return found if self.refresh_token is None else found | {"refresh_token": self.refresh_token}
