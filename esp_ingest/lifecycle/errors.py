"""The errors that can stop the lifecycle. Each has a sentence for people and a reason from a closed list for
metrics."""

from enum import StrEnum

from esp_ingest.errors import Error


class Reason(StrEnum):
    """Why a day was neither archived nor dropped. The list is closed, so that it can be the label of a metric."""

    UNSET = "unset"  # archive.url is empty
    STORAGE = "storage"  # unreachable, read-only, full, slow, or refusing our key
    FOREIGN = "foreign"  # the archive belongs to another database
    NEWER = "newer"  # a manifest that this program, or this database's records, do not know yet
    DAMAGED = "damaged"  # what lies in the archive is not what its manifest says
    MISMATCH = "mismatch"  # the archive is whole, but the database holds something else
    SCHEMA = "schema"  # a column or a value that the archive cannot hold
    CLOCK = "clock"  # this machine's clock and the database's do not agree
    DATABASE = "database"  # the database refused a statement or is away
    BEHIND = "behind"  # a finished day has no proven copy yet


class LifecycleError(Error):
    """The message is one sentence that says what to do."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class BackupError(Error):
    """The backup cannot be restored, or its content is not what it should be. The message is a sentence that says
    what to do."""
