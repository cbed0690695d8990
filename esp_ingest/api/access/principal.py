"""Who sent a request and what they may do: a role, and the wells that they may see."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from esp_ingest.store.queries import like

Role = Literal["viewer", "operator", "admin"]
_RANK = {"viewer": 0, "operator": 1, "admin": 2}
EVERYTHING = ("*",)


@dataclass(frozen=True, slots=True)
class Principal:
    """``wells`` are patterns of well ids in which * stands for any text. ``kind``: user, token or oidc."""

    name: str
    role: Role
    wells: tuple[str, ...]
    kind: Literal["user", "token", "oidc"]
    expires_at: float  # Unix seconds
    session: str = ""  # of a local user's session

    def may(self, role: Role) -> bool:
        """Whether the role is this one or a higher one."""
        return _RANK[self.role] >= _RANK[role]

    @property
    def sees_everything(self) -> bool:
        """Whether no well is hidden from this principal."""
        return "*" in self.wells

    def sees(self, well_id: str) -> bool:
        """Whether this well may be seen."""
        return self.sees_everything or _expression(self.wells).fullmatch(well_id) is not None

    @property
    def like(self) -> list[str]:
        """The patterns in the syntax of SQL's LIKE."""
        return list(map(like, self.wells))


@cache
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns) or r"(?!)")
