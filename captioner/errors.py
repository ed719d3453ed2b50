"""What a command tells the user in one line, as against a bug, which keeps its traceback."""

from collections.abc import Sequence

INTERRUPTED = 130
"""Exit status of what was asked to stop."""


class CaptionerError(Exception):
    """Something the user can mend; the message says what was given, what is wrong and what to do."""


class UsageError(CaptionerError):
    """Arguments of a command that make no sense together."""


class Stopped(CaptionerError):  # noqa: N818 (it is none)
    """Work that was asked to stop and has been saved: not an error, but an end."""


def first_of(names: Sequence[str], count: int = 3) -> str:
    """The first few names for a message, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
