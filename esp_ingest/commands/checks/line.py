"""A line of `esp-ingest check`."""

from typing import NamedTuple


class Line(NamedTuple):
    """What was looked at, whether it is well, and why."""

    subject: str
    ok: bool
    detail: str
    is_note: bool = False  # neither well nor wrong: what this database is able to do

    @property
    def state(self) -> str:
        """ok, note or FAIL."""
        return "FAIL" if not self.ok else "note" if self.is_note else "ok"

    def __str__(self) -> str:
        return f"{self.subject:<14} {self.state:<4}  {self.detail}"
