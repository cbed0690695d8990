"""What can go wrong, as classes that a caller catches. Each message is one sentence that says what to do.

The errors of a package stand in that package and derive from these; the command line turns them into exit codes.
"""


class Error(Exception):
    """Something failed that a person has to know of. The command line prints the message and ends with 1."""


class UsageError(Error):
    """What was asked for cannot be done as it was asked: wrong arguments, settings, rules or input files. The command
    line prints the message and ends with 2; asking again in the same way changes nothing."""
